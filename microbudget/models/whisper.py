"""Whisper: teachers, their true students, and a student cut from a teacher.

Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision
(arXiv:2212.04356); Gandhi, von Platen and Rush 2023, Distil-Whisper (arXiv:2311.00430).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn

from .. import assets
from ..assets.folders import clear_load_errors, require_files, require_finite
from ..core import settings
from ..core.errors import AssetError, MicrobudgetError
from ..core.files import atomic_folder


@dataclass(frozen=True)
class Whisper:
    """A model with what turns sound into its input and its output into text.

    Attributes:
        model: transformers' module, float32, in eval mode.
        processor: its feature extractor and tokenizer.
    """

    name: str
    model: nn.Module
    processor: object
    card: str = ""

    @property
    def layers(self) -> tuple[int, int]:
        """Layers of the encoder and of the decoder."""
        model = self.model.model
        return len(model.encoder.layers), len(model.decoder.layers)

    def parameters(self) -> tuple[int, int]:
        """Weights of the encoder and of the decoder, embeddings included."""
        parts = self.model.model.encoder, self.model.model.decoder
        return tuple(sum(p.numel() for p in part.parameters()) for part in parts)


def teacher() -> Whisper:
    """The Whisper of this profile: tiny.en; in ``full`` medium.en, small.en on a CPU.

    Raises:
        AssetError: it isn't here and can't be fetched.
    """
    return load(_teacher_name())


def load(name: str) -> Whisper:
    """A Whisper of the catalog, fetched first if it isn't here.

    Raises:
        AssetError: no such asset, damaged files, or nothing that can be fetched.
    """
    return load_folder(assets.fetch(name), name, assets.get(name).card())


def load_folder(folder: str | Path, name: str = "", card: str = "") -> Whisper:
    """A Whisper in transformers' folder layout; weights only from safetensors.

    Raises:
        AssetError: a file is missing or damaged, or it is another kind of model.
    """
    folder = Path(folder)
    require_files(folder, "Whisper")
    with clear_load_errors(folder):
        config = transformers.AutoConfig.from_pretrained(folder)
        if config.model_type != "whisper":
            raise AssetError(f"{folder} holds a {config.model_type}, not a Whisper.")
        model = transformers.WhisperForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        )
        processor = transformers.WhisperProcessor.from_pretrained(folder)
    require_finite(model, folder.name)
    model.to(settings.device()).eval().requires_grad_(False)
    return Whisper(name or folder.name, model, processor, card)


def student(teacher: Whisper, layers: Sequence[int] | None = None) -> Whisper:
    """A student with the teacher's encoder and a few of its decoder's layers.

    Encoder and embeddings are the teacher's own tensors, shared and frozen; the kept
    layers and the last norm are copies, and trainable. Distil-Whisper freezes the
    encoder only; frozen embeddings spare a gradient of (V, d) a step.

    Args:
        layers: which of the decoder's; default: the first and the last.

    Raises:
        MicrobudgetError: a layer the teacher doesn't have, or none at all.
    """
    whole = teacher.model
    count = len(whole.model.decoder.layers)
    kept = [0, count - 1] if layers is None else list(layers)
    if not kept or not all(0 <= i < count for i in kept):
        raise MicrobudgetError(
            f"layers={kept}: {teacher.name}'s decoder has the layers 0 to {count - 1}; "
            "name at least one."
        )
    shared = [whole.model.encoder, whole.model.decoder.embed_tokens,
              whole.model.decoder.embed_positions, whole.proj_out]  # fmt: skip
    # What deepcopy finds in this table it doesn't copy.
    model = copy.deepcopy(whole, {id(p): p for s in shared for p in s.parameters()})
    decoder = model.model.decoder
    decoder.layers = nn.ModuleList(decoder.layers[i] for i in kept)
    # transformers' cache of keys and values finds a layer's part by this number.
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = layer.encoder_attn.layer_idx = index
    model.config.decoder_layers = len(kept)
    model.generation_config.alignment_heads = None  # of layers that may be gone
    model.requires_grad_(False)
    decoder.layers.requires_grad_(True)
    decoder.layer_norm.requires_grad_(True)
    return Whisper(f"{teacher.name}, {len(kept)} decoder layers", model,
                   teacher.processor)  # fmt: skip


def save(whisper: Whisper, folder: str | Path) -> Path:
    """Write a transformers folder, weights in float16, whole or not at all."""
    folder = Path(folder)
    with atomic_folder(folder) as draft:
        model = copy.deepcopy(whisper.model).to("cpu", torch.float16)
        model.save_pretrained(draft)
        whisper.processor.save_pretrained(draft)
    return folder


def _teacher_name() -> str:
    if settings.load().profile == "mini":
        return "whisper-tiny.en"
    return "whisper-medium.en" if "cuda" in settings.device() else "whisper-small.en"
