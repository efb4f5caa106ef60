"""A simulated model on disk as what it means: whole numbers, scales and ranges."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..core.errors import QuantizationError
from ..core.files import atomic_path
from .fake_quant import Simulated, parts, simulate


def save(model: nn.Module, path: str | os.PathLike) -> Path:
    """Write int8 codes, scales, biases and input ranges as one safetensors file.

    Fewer than eight bits still take a byte each here: nothing is packed.

    Raises:
        QuantizationError: nothing is simulated, or a weight has other than 2 to 8 bits.
    """
    maps = parts(model)
    if not maps:
        raise QuantizationError("Nothing is simulated here: simulate(model) first.")
    state, card = {}, {}
    for name, part in maps.items():
        if not 2 <= part.bits <= 8:
            raise QuantizationError(f"{name} has {part.bits} bits: int8 holds 2 to 8.")
        mapping = part.weight_mapping()
        state[f"{name}.codes"] = mapping.quantize(part.inner.weight.detach()).to(
            torch.int8
        )
        state[f"{name}.scale"] = mapping.scale
        state |= {f"{name}.{end}": getattr(part, end) for end in ("low", "high")}
        if part.inner.bias is not None:
            state[f"{name}.bias"] = part.inner.bias.detach()
        card[name] = [part.bits, part.input_bits, bool(part.keep), part.dynamic]
    rest = {k: v for k, v in model.state_dict().items()
            if not k.startswith(tuple(f"{name}." for name in maps))}  # fmt: skip
    state = {key: tensor.cpu().contiguous() for key, tensor in (state | rest).items()}
    path = Path(path)
    with atomic_path(path, QuantizationError) as temporary:
        save_file(state, temporary, metadata={"int8": json.dumps(card)})
    return path


def load(model: nn.Module, path: str | os.PathLike) -> nn.Module:
    """The simulated model of ``save``.

    Args:
        model: the float architecture, its batch-norms folded; weights don't matter.

    Raises:
        QuantizationError: no file of ``save``, or of another architecture.
    """
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            card = json.loads(file.metadata()["int8"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        new = simulate(model, {name: own[0] for name, own in card.items()})
        with torch.no_grad():
            for name, part in parts(new).items():
                _, part.input_bits, per_channel, part.dynamic = card[name]
                part.keep = (0,) if per_channel else ()
                _fill(part, name, state)
        left = new.load_state_dict(state, strict=False)
        own = tuple(f"{name}." for name in card)
        missing = [key for key in left.missing_keys if not key.startswith(own)]
        if left.unexpected_keys or missing:
            raise QuantizationError(
                f"{[*left.unexpected_keys, *missing][0]} is in {path.name} or in the "
                "model, but not in both: fold the model's batch-norms as before saving."
            )
    except QuantizationError:
        raise
    except Exception as error:  # safetensors, json and torch raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise QuantizationError(
            f"{path} is no int8 file of this model ({reason}). Save it again."
        ) from error
    return new.eval()


def _fill(part: Simulated, name: str, state: dict[str, torch.Tensor]) -> None:
    codes, scale = state.pop(f"{name}.codes"), state.pop(f"{name}.scale")
    weight = codes.float() * scale
    if weight.shape != part.inner.weight.shape:
        raise QuantizationError(
            f"{name} is {tuple(part.inner.weight.shape)} here and "
            f"{tuple(weight.shape)} in the file: it is another architecture."
        )
    part.inner.weight.copy_(weight)
    for end in ("low", "high"):
        getattr(part, end).copy_(state.pop(f"{name}.{end}"))
    if part.inner.bias is not None:
        part.inner.bias.copy_(state.pop(f"{name}.bias"))
