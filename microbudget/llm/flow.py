"""What flows through a transformer's layers: caught before the first, passed on."""

from dataclasses import dataclass

import torch
from torch import nn

from ..core.errors import QuantizationError


@dataclass
class Arrived:
    """What the first layer is called with."""

    hidden: torch.Tensor
    rest: tuple
    named: dict


class _Stop(Exception):
    """The model's forward pass has come as far as it is needed."""


def inputs_of_first(model, first: nn.Module, calibration) -> Arrived:
    """Run the model up to its first layer and catch what that is called with."""
    caught = []

    def catch(module, arguments, named):
        caught.append(Arrived(arguments[0], arguments[1:], named))
        raise _Stop

    hook = first.register_forward_pre_hook(catch, with_kwargs=True)
    home = next(model.parameters()).device
    try:
        model(calibration.to(home), use_cache=False)
    except _Stop:
        pass
    finally:
        hook.remove()
    (arrived,) = caught
    arrived.hidden, arrived.rest, arrived.named = _moved(
        (arrived.hidden, arrived.rest, arrived.named), calibration.device
    )
    return arrived


def require_alike(model, layers: nn.ModuleList, calibration) -> None:
    """Raise unless all layers get the same masks and positions, by one sequence."""
    seen: list[tuple] = []

    def note(layer, arguments, named):
        tensors = _tensors_in((arguments[1:], named))
        if seen and not (
            len(tensors) == len(seen[0])
            and all(map(torch.equal, tensors, seen[0]))
        ):  # fmt: skip
            raise QuantizationError(
                "This model's layers are of several kinds, called with different masks "
                "or positions (such as sliding windows): unsupported."
            )
        seen.append(tensors)

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in layers]
    home = next(model.parameters()).device
    try:
        model(calibration[:1].to(home), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def _tensors_in(value) -> tuple[torch.Tensor, ...]:
    """All tensors in nested tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return (value,)
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | tuple):
        return ()
    return tuple(tensor for part in inner for tensor in _tensors_in(part))


def call(layer: nn.Module, arrived: Arrived, rows: int | None = None):
    """What the layer makes of the first ``rows`` sequences (default: of all)."""
    n = len(arrived.hidden)

    def first(value):
        if rows and isinstance(value, torch.Tensor) and value.ndim and len(value) == n:
            return value[:rows]
        if isinstance(value, tuple):
            return tuple(first(inner) for inner in value)
        return value

    named = {key: first(value) for key, value in arrived.named.items()}
    out = layer(first(arrived.hidden), *first(arrived.rest), **named)
    return out[0] if isinstance(out, tuple) else out


def _moved(value, device):
    """Tensors in nested tuples and dicts, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(inner, device) for inner in value)
    if isinstance(value, dict):
        return {key: _moved(inner, device) for key, inner in value.items()}
    return value
