"""GPTQ checkpoints: a transformers folder with packed weights.

The format is the one that transformers and GPTQModel load (AutoGPTQ, which introduced
it, is no longer maintained). ``gptq_v2`` stores zero points as they are; the older
``gptq`` stores z − 1, which can't say 0, and is used for symmetric grids, where z is
never 0. Groups are always of neighbouring columns here, also with act-order, so
``desc_act`` is false.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from ..assets.folders import clear_load_errors, require_files, require_finite
from ..core import settings
from ..core.errors import QuantizationError
from ..core.files import atomic_folder
from ..core.modules import replace_layer
from ..models.smollm import Llm
from ..quantization.affine import QuantConfig, QuantizedTensor
from .packed import PackedLinear
from .packing import pack, require_packable, unpack


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
    state = {}
    for name, tensor in _unquantized(model, tensors).items():
        state[name] = tensor.half().cpu().contiguous()
        if not torch.isfinite(state[name]).all():
            raise QuantizationError(f"{name} is not finite, or too large for float16.")
    for name, weight in tensors.items():
        require_packable(*reversed(weight.codes.shape), weight.bits, name)
        packed = PackedLinear.pack(weight.to("cpu"))
        if config.symmetric:
            packed.qzeros = _add_to_packed(packed.qzeros, weight.bits, -1)
        state |= packed.state_dict(prefix=f"{name}.")
    quantization = _quantization_settings(config)
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
        _require_known(folder.name, found)
        config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        with torch.device("meta"):  # shapes only: the weights come from the file
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        state = load_file(folder / "model.safetensors")
        minus_one = found.get("checkpoint_format", "gptq") == "gptq"
        _fill_(model, state, found["bits"], minus_one, dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    require_finite(model, folder.name)
    model.to(settings.device()).eval().requires_grad_(False)
    return Llm(folder.name, model, tokenizer)


def _unquantized(model: nn.Module, tensors: dict) -> dict[str, torch.Tensor]:
    """What stays as it is: embeddings, norms, biases, a head of its own."""
    skip = {f"{name}.weight" for name in tensors}
    if getattr(model.config, "tie_word_embeddings", False):
        skip.add("lm_head.weight")
    return {n: t for n, t in model.state_dict().items() if n not in skip}


def _require_own(folder: Path) -> None:
    """Raise if writing would remove something that is no checkpoint."""
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_new and not (folder / "quantize_config.json").is_file():
        raise QuantizationError(
            f"{folder} exists and is no GPTQ checkpoint: it would be replaced. Choose "
            "another folder."
        )


def _require_known(name: str, found: dict) -> None:
    if found.get("quant_method") != "gptq":
        raise QuantizationError(
            f"{name} is no GPTQ checkpoint (quantization method: "
            f"{found.get('quant_method', 'none')})."
        )
    form, bits = found.get("checkpoint_format", "gptq"), found.get("bits")
    if form not in ("gptq", "gptq_v2") or bits not in (2, 3, 4, 8):
        raise QuantizationError(
            f"{name}: {bits} bits in format {form!r} aren't known here."
        )


def _quantization_settings(config: QuantConfig) -> dict:
    return {
        "quant_method": "gptq",
        "bits": config.bits,
        "group_size": -1 if config.group_size is None else config.group_size,
        "desc_act": False,
        "sym": config.symmetric,
        "lm_head": False,
        "damp_percent": config.damping,
        "true_sequential": True,
        "checkpoint_format": "gptq" if config.symmetric else "gptq_v2",
    }


def _add_to_packed(qzeros: torch.Tensor, bits: int, number: int) -> torch.Tensor:
    """Packed zero points, with a number added to each."""
    zero_points = unpack(qzeros.T.contiguous(), bits).int() + number
    return pack(zero_points % 2**bits, bits).T.contiguous()


def _fill_(model: nn.Module, state: dict, bits: int, minus_one: bool, dtype) -> None:
    """Put packed layers in place, then every tensor where it belongs."""
    for key, tensor in state.items():
        if tensor.is_floating_point() and not key.endswith(".scales"):
            state[key] = tensor.to(dtype)
    for name in [key[: -len(".qweight")] for key in state if key.endswith(".qweight")]:
        if minus_one:
            zero_points = _add_to_packed(state[f"{name}.qzeros"], bits, 1)
            state[f"{name}.qzeros"] = zero_points
        parts = {part: state[f"{name}.{part}"]
                 for part in ("qweight", "qzeros", "scales", "g_idx")}  # fmt: skip
        packed = PackedLinear(**parts, bits=bits, bias=state.get(f"{name}.bias"))
        replace_layer(model, name, packed)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if wrong := sorted({*missing, *unexpected} - {"lm_head.weight"}):
        raise QuantizationError(f"The weights don't fit the architecture: {wrong[:3]}.")
    model.tie_weights()
    for module in model.modules():
        # The rotary frequencies aren't in the file, and on the meta device they have no
        # numbers: they are computed from the configuration.
        if hasattr(module, "inv_freq"):
            fresh = type(module)(config=model.config)
            module.inv_freq = module.original_inv_freq = fresh.inv_freq
