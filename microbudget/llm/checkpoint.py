"""GPTQ checkpoints: a transformers folder with packed weights.

The format is ``gptq_v2``, as GPTQModel and transformers load it: zero points are stored
as they are. The older ``gptq`` of AutoGPTQ stores z − 1, which can't say 0; it is read,
too. Groups are always of neighbouring columns here, also with act-order, so
``desc_act`` is false.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.initialization import no_init_weights

from ..assets.folders import clear_load_errors, require_files, require_finite
from ..core import settings
from ..core.errors import QuantizationError
from ..core.files import atomic_folder
from ..core.modules import replace_layer
from ..models.smollm import Llm
from ..quantization.affine import QuantConfig, QuantizedTensor
from .packed import PackedLinear, pack, unpack


def save(
    llm: Llm,
    folder: str | Path,
    tensors: dict[str, QuantizedTensor],
    config: QuantConfig,
) -> Path:
    """Write a model with these linear layers packed, everything else in float16.

    Args:
        llm: holds plain linear layers; it isn't changed.
        tensors: name of a linear layer -> its weight, as ``quantize_`` returns them.
        config: what they were quantized with.

    Raises:
        QuantizationError: shapes that can't be packed, an embedding that float16 can't
            hold, a folder with something else in it, a full disk. Nothing half-written
            is left.
    """
    folder, model = Path(folder), llm.model
    _require_own(folder)
    skip = {f"{name}.weight" for name in tensors}
    if model.config.tie_word_embeddings:
        skip.add("lm_head.weight")
    state = {n: t.half().cpu() for n, t in model.state_dict().items() if n not in skip}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise QuantizationError(f"{name} is not finite, or too large for float16.")
    for name, weight in tensors.items():
        state |= PackedLinear.pack(weight).cpu().state_dict(prefix=f"{name}.")
    quantization = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq_v2",
        "bits": config.bits,
        "group_size": config.group_size or -1,
        "sym": config.symmetric,
        "desc_act": False,
        "lm_head": False,
        "damp_percent": config.damping,
        "true_sequential": True,
    }
    model_config = model.config.to_dict()
    model_config.pop("_name_or_path", None)
    model_config |= {"dtype": "float16", "quantization_config": quantization}
    with atomic_folder(folder, QuantizationError) as draft:
        save_file(state, draft / "model.safetensors", {"format": "pt"})
        texts = {"config.json": model_config, "quantize_config.json": quantization}
        for file, content in texts.items():
            (draft / file).write_text(json.dumps(content, indent=2, sort_keys=True))
        llm.tokenizer.save_pretrained(draft)
        model.generation_config.save_pretrained(draft)
    return folder


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> Llm:
    """A GPTQ checkpoint, ours or another's, with packed linear layers.

    Args:
        dtype: of everything that isn't packed, and of the arithmetic.

    Raises:
        AssetError: files are missing or damaged.
        QuantizationError: no GPTQ checkpoint, or a form of it that isn't known here.
    """
    folder = Path(folder)
    require_files(folder, "GPTQ checkpoint's")
    with clear_load_errors(folder):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        found = config.pop("quantization_config", {})
        form = found.get("checkpoint_format", "gptq")
        if found.get("quant_method") != "gptq" or form not in ("gptq", "gptq_v2"):
            raise QuantizationError(
                f"{folder.name} is no GPTQ checkpoint of a known format ({form}). Load "
                "it with transformers' AutoModelForCausalLM."
            )
        config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        with no_init_weights():  # they come from the file
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        state = load_file(folder / "model.safetensors")
        if form == "gptq":
            _add_one_to_zero_points_(state, found["bits"])
        _fill_(model, state, found["bits"], dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    require_finite(model, folder.name)
    model.to(settings.device()).eval().requires_grad_(False)
    return Llm(folder.name, model, tokenizer)


def _require_own(folder: Path) -> None:
    """Raise if writing would remove something that is no checkpoint."""
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_new and not (folder / "quantize_config.json").is_file():
        raise QuantizationError(
            f"{folder} exists and is no GPTQ checkpoint: it would be replaced. Choose "
            "another folder."
        )


def _add_one_to_zero_points_(state: dict[str, torch.Tensor], bits: int) -> None:
    for key in [key for key in state if key.endswith(".qzeros")]:
        zero_points = unpack(state[key].T.contiguous(), bits) + 1
        state[key] = pack(zero_points % 2**bits, bits).T.contiguous()


def _fill_(model: nn.Module, state: dict, bits: int, dtype: torch.dtype) -> None:
    """Put packed layers in place, then every tensor where it belongs."""
    for key, tensor in state.items():
        if tensor.is_floating_point() and not key.endswith(".scales"):
            state[key] = tensor.to(dtype)
    for key in [key for key in state if key.endswith(".qweight")]:
        name = key.removesuffix(".qweight")
        parts = ("qweight", "qzeros", "scales", "g_idx", "bias")
        tensors = {part: state.get(f"{name}.{part}") for part in parts}
        replace_layer(model, name, PackedLinear(bits, **tensors))
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if wrong := sorted({*missing, *unexpected} - {"lm_head.weight"}):
        raise QuantizationError(f"The weights don't fit the architecture: {wrong[:3]}.")
    model.tie_weights()
