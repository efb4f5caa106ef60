"""Sentence encoders (BERT, RoBERTa) and the classifier the course builds on them."""

import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from torch import nn

from .. import assets
from ..assets.folders import (
    clear_load_errors,
    require_files,
    require_finite,
    weights_id,
)
from ..core import settings
from ..core.errors import AssetError, DataError
from ..data.batching import masked_mean
from .bitsandbytes import keep_trainable_, load_options

MINI, FULL = "minilm-l6", "roberta-base"


class Classifier(nn.Module):
    """Encoder, mean over a sentence's tokens, and a linear head for each task.

    The mean, not the first token: MiniLM was trained to give meaningful ones, and it
    serves RoBERTa as well.

    Attributes:
        heads: task -> linear layer; ``task`` says which one answers.
        base_id: which weights the encoder had before any training.
    """

    def __init__(self, encoder: nn.Module, base_id: str = ""):
        super().__init__()
        self.encoder, self.base_id = encoder, base_id
        self.heads, self.task = nn.ModuleDict(), ""

    def add_head(self, task: str, classes: int) -> None:
        """A new head, drawn from torch's generator; it becomes the active one."""
        head = nn.Linear(self.encoder.config.hidden_size, classes)
        self.heads[task] = head.to(next(self.encoder.parameters()).device)
        self.task = task

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ids, mask (batch, tokens) -> (batch, d): the mean over each one's tokens."""
        positions = self.encoder.config.max_position_embeddings
        if ids.shape[1] > positions:
            raise DataError(
                f"A text of {ids.shape[1]} tokens is longer than this encoder's "
                f"{positions} positions: use a smaller max_tokens, which cuts it."
            )
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return masked_mean(states.float(), mask, 1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ids, mask (batch, tokens) -> logits (batch, classes)."""
        return self.heads[self.task](self.embed(ids, mask))


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder on disk, with its tokenizer."""

    name: str
    folder: Path
    tokenizer: object
    card: str
    base_id: str

    def classifier(
        self,
        classes: int,
        *,
        task: str = "task",
        seed: int = 0,
        four_bit: bool = False,
    ) -> Classifier:
        """A fresh copy of the weights with a new head, on the course's device.

        Args:
            seed: of the head's first weights.
            four_bit: store the encoder's linear layers in bitsandbytes' NF4 with
                double quantization (Dettmers et al. 2023, QLoRA, section 3).
        """
        if four_bit:  # packed weights aren't made to be copied
            encoder = keep_trainable_(_weights(self.folder, four_bit=True))
        else:
            encoder = copy.deepcopy(_pristine(self.folder, self.base_id))
        encoder.to(settings.device())
        model = Classifier(encoder, f"{self.name}:{self.base_id}")
        torch.manual_seed(seed)
        model.add_head(task, classes)
        return model


def load(folder: str | Path | None = None) -> Encoder:
    """The encoder of this profile (MiniLM-L6; in ``full`` RoBERTa-base), or a folder's.

    Raises:
        AssetError: it can't be had, a file is missing, or it is no encoder like BERT.
    """
    name, card = FULL if settings.load().profile == "full" else MINI, ""
    if folder is None:
        folder, card = assets.fetch(name), assets.get(name).card()
    else:
        name = Path(folder).name
    folder = Path(folder)
    require_files(folder, "encoder's")
    with clear_load_errors(folder):
        config = transformers.AutoConfig.from_pretrained(folder)
        if config.model_type not in ("bert", "roberta"):
            raise AssetError(f"{folder} holds a {config.model_type}, not a BERT.")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return Encoder(name, folder, tokenizer, card, weights_id(folder))


@lru_cache(maxsize=1)
def _pristine(folder: Path, base_id: str) -> nn.Module:
    """Read once, copied for every model: a notebook makes dozens of them."""
    return _weights(folder)


def _weights(folder: Path, four_bit: bool = False) -> nn.Module:
    with clear_load_errors(folder):
        encoder = transformers.AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True,
            add_pooling_layer=False,
            # no dropout: drawing its masks takes a sixth of a step, and a few hundred
            # steps overfit little
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            # fused attention is slow for short sentences in bfloat16 on a CPU
            attn_implementation="eager", **load_options(four_bit),
        )  # fmt: skip
    require_finite(encoder, folder.name)
    return encoder
