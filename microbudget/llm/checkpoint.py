"""GPTQ checkpoints: a transformers folder with packed weights.

The format is the one that transformers and GPTQModel load (AutoGPTQ, which introduced
it, is no longer maintained). ``gptq_v2`` stores zeros as they are; the older ``gptq``
stores z − 1, which can't say 0, and is used for symmetric grids, where z is never 0.
Groups are never torn apart here, also not by act-order, so ``desc_act`` is false.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..assets.folders import clear_load_errors, require_files, require_finite
from ..core import settings
from ..core.errors import QuantizationError
from ..core.files import atomic_folder
from ..models.smollm import Llm
from ..quantization.affine import Quantized, Scheme
from .packed import PackedLinear, require_packable
from .packing import pack, unpack

_MAPS = ("qweight", "qzeros", "scales", "g_idx")
_EXTRA = 64  # bytes of a tensor's entry in the file, about


def save(
    llm: Llm, matrices: dict[str, Quantized], scheme: Scheme, folder: str | Path
) -> Path:
    """Write a model with these linear maps packed, everything else in float16.

    Args:
        llm: its model holds plain linear maps or packed ones; it isn't changed.

    Raises:
        QuantizationError: shapes that can't be packed, matrices of other bits than the
            scheme's, an embedding that isn't finite, a folder with something else in
            it, a full disk. Nothing half-written is left.
    """
    folder, model = Path(folder), llm.model
    _require_own(folder)
    packed = [n for n, m in model.named_modules() if isinstance(m, PackedLinear)]
    wrong = [n for n, m in matrices.items() if m.bits != scheme.bits]
    if wrong or set(packed) - set(matrices):
        raise QuantizationError(
            f"These matrices aren't all of the model's packed ones, or not of "
            f"{scheme.bits} bits: {(wrong or packed)[0]}."
        )
    for name, matrix in matrices.items():
        try:
            require_packable(*reversed(matrix.codes.shape), matrix.bits)
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}") from error
    v2 = not scheme.symmetric
    state = {}
    for name, tensor in _dense(model, matrices).items():
        state[name] = tensor.half().cpu().contiguous()
        if not torch.isfinite(state[name]).all():
            raise QuantizationError(f"{name} is not finite, or too large for float16.")
    for name, matrix in matrices.items():
        packed = PackedLinear.of(matrix.to("cpu"))
        for part in _MAPS:
            state[f"{name}.{part}"] = getattr(packed, part)
        if not v2:
            state[f"{name}.qzeros"] = _shifted(packed.qzeros, matrix.bits, -1)
    config = model.config.to_dict()
    config.pop("_name_or_path", None)
    config |= {"dtype": "float16", "quantization_config": _settings_of(scheme)}
    with atomic_folder(folder, QuantizationError) as draft:
        save_file(state, draft / "model.safetensors", {"format": "pt"})
        texts = {"config.json": config, "quantize_config.json": _settings_of(scheme)}
        for file, content in texts.items():
            (draft / file).write_text(json.dumps(content, indent=2, sort_keys=True))
        llm.tokenizer.save_pretrained(draft)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(draft)
    return folder


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> Llm:
    """A GPTQ checkpoint, ours or another's, with packed linear maps.

    Args:
        dtype: of everything that isn't packed, and of the arithmetic.

    Raises:
        AssetError: files are missing or damaged. QuantizationError: no GPTQ checkpoint,
            or of a form that isn't known here.
    """
    folder = Path(folder)
    require_files(folder, "GPTQ checkpoint's")
    with clear_load_errors(folder):
        text = json.loads((folder / "config.json").read_text("utf-8"))
    notes = text.pop("quantization_config", None) or {}
    if notes.get("quant_method") != "gptq":
        raise QuantizationError(
            f"{folder.name} is no GPTQ checkpoint (quantization method: "
            f"{notes.get('quant_method', 'none')})."
        )
    form, bits = notes.get("checkpoint_format", "gptq"), notes.get("bits")
    if form not in ("gptq", "gptq_v2") or bits not in (2, 3, 4, 8):
        raise QuantizationError(
            f"{folder.name}: {bits} bits in format {form!r} aren't known here."
        )
    with clear_load_errors(folder):
        state = _read(folder / "model.safetensors")
        kind = text.pop("model_type")
        config = transformers.AutoConfig.for_model(kind, **text)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        _fill(model, state, bits, form, dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    require_finite(model, folder.name)
    _require_sound(model, folder.name)
    model.to(settings.device()).eval().requires_grad_(False)
    return Llm(folder.name, model, tokenizer)


def predicted_bytes(model: nn.Module, matrices: dict[str, Quantized]) -> int:
    """What the checkpoint's weights will take on disk, before it is written."""
    dense = sum(2 * t.numel() + _EXTRA for t in _dense(model, matrices).values())
    packed = sum(
        m.codes.numel() * m.bits // 8
        + m.scales.numel() * (2 + m.bits / 8)
        + 4 * m.groups.numel()
        + 4 * _EXTRA
        for m in matrices.values()
    )
    return int(dense + packed)


def _dense(model: nn.Module, matrices: dict) -> dict[str, torch.Tensor]:
    """What stays as it is: embeddings, norms, biases, a head of its own."""
    tied = getattr(model.config, "tie_word_embeddings", False)
    skip = {f"{name}.weight" for name in matrices}
    if tied:
        skip.add("lm_head.weight")
    packed = [n for n, m in model.named_modules() if isinstance(m, PackedLinear)]
    skip |= {f"{name}.{part}" for name in packed for part in _MAPS}
    return {n: t for n, t in model.state_dict().items() if n not in skip}


def _require_own(folder: Path) -> None:
    """Raise if writing would remove something that is no checkpoint."""
    if not folder.exists():
        return
    empty = folder.is_dir() and not any(folder.iterdir())
    if not empty and not (folder / "quantize_config.json").is_file():
        raise QuantizationError(
            f"{folder} is there already and is no GPTQ checkpoint: it would be "
            "replaced. Choose another folder."
        )


def _settings_of(scheme: Scheme) -> dict:
    return {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": -1 if scheme.group is None else scheme.group,
        "desc_act": False,
        "sym": scheme.symmetric,
        "lm_head": False,
        "damp_percent": scheme.damping,
        "true_sequential": True,
        "checkpoint_format": "gptq" if scheme.symmetric else "gptq_v2",
    }


def _shifted(qzeros: torch.Tensor, bits: int, by: int) -> torch.Tensor:
    """Packed zeros, each with ``by`` added."""
    zeros = unpack(qzeros.T.contiguous(), bits).int() + by
    if zeros.min() < 0:
        raise QuantizationError("A zero point of 0 can't be stored in format 'gptq'.")
    return pack(zeros % 2**bits, bits).T.contiguous()


def _require_sound(model: nn.Module, name: str) -> None:
    for path, module in model.named_modules():
        if not isinstance(module, PackedLinear):
            continue
        groups = module.g_idx
        if not torch.isfinite(module.scales).all():
            raise QuantizationError(f"{name}: scales of {path} aren't finite.")
        if int(groups.min()) < 0 or int(groups.max()) >= len(module.scales):
            raise QuantizationError(f"{name}: {path} names groups that aren't there.")


def _read(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _fill(model: nn.Module, state: dict, bits: int, form: str, dtype) -> None:
    """Put packed maps in place, then every tensor where it belongs."""
    for name in [key[: -len(".qweight")] for key in state if key.endswith(".qweight")]:
        linear, parent = model.get_submodule(name), name.rpartition(".")[0]
        groups = len(state[f"{name}.scales"])
        packed = PackedLinear(
            linear.in_features, linear.out_features, bits, groups,
            bias=linear.bias is not None,
        )  # fmt: skip
        if form == "gptq":
            state[f"{name}.qzeros"] = _shifted(state[f"{name}.qzeros"], bits, 1)
        setattr(model.get_submodule(parent), name.rpartition(".")[2], packed)
    for key, tensor in state.items():
        part = key.rpartition(".")[2]
        if tensor.is_floating_point() and part != "scales":
            state[key] = tensor.to(dtype)
    missing, strange = model.load_state_dict(state, strict=False, assign=True)
    missing = set(missing) - {"lm_head.weight"}
    if missing or strange:
        wrong = sorted({*missing, *strange})
        raise QuantizationError(f"The weights don't fit the architecture: {wrong[:3]}.")
    model.tie_weights()
    for module in model.modules():  # not in the file: computed from the configuration
        if hasattr(module, "inv_freq"):
            fresh = type(module)(config=model.config)
            module.inv_freq = fresh.inv_freq
            module.original_inv_freq = fresh.inv_freq
