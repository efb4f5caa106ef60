"""Which weights mind being rounded: noise in the weights, and harm to the model."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from ..core.errors import QuantizationError
from ..core.progress import bar
from ..quantization.affine import Scheme, round_to_nearest, sqnr
from .calibrate import find_layers, named_linears


def by_layer(model: nn.Module) -> dict[int, list[str]]:
    """Layer -> names of the weights of its linear maps."""
    path, layers = find_layers(model)
    found: dict[int, list[str]] = {i: [] for i in range(len(layers))}
    for name, _ in named_linears(model, layers):
        found[int(name.removeprefix(f"{path}.").split(".")[0])].append(f"{name}.weight")
    return found


def by_kind(model: nn.Module, embeddings: bool = True) -> dict[str, list[str]]:
    """Kind of map (``q_proj``, ``down_proj`` …) -> names of its weights in all layers.

    Args:
        embeddings: a kind of their own, with the head that shares them.
    """
    _, layers = find_layers(model)
    found: dict[str, list[str]] = {}
    for name, _ in named_linears(model, layers):
        found.setdefault(name.rpartition(".")[2], []).append(f"{name}.weight")
    if embeddings:
        table = model.get_input_embeddings()
        names = [f"{n}.weight" for n, m in model.named_modules() if m is table]
        found["embeddings"] = names
    return found


@torch.no_grad()
def one_at_a_time(
    model: nn.Module,
    parts: Mapping[object, Sequence[str]],
    scheme: Scheme,
    score: Callable[[], float],
) -> dict[object, float]:
    """Round one part to nearest, score the model, put the part back; for every part.

    Args:
        parts: label -> names of parameters (matrices).
        score: judges the model as it is, such as its KL divergence to the original.

    Raises:
        QuantizationError: a name that is no parameter.
    """
    parameters, found = dict(model.named_parameters()), {}
    for label, names in bar(parts.items(), "sensitivity", unit="part"):
        if strange := set(names) - set(parameters):
            raise QuantizationError(f"The model has no {sorted(strange)[0]!r}.")
        before = {name: parameters[name].detach().clone() for name in names}
        try:
            for name in names:
                rounded = round_to_nearest(parameters[name], scheme).dequantize()
                parameters[name].copy_(rounded)
            found[label] = score()
        finally:
            for name, weight in before.items():
                parameters[name].copy_(weight)
    return found


@torch.no_grad()
def noise(model: nn.Module, scheme: Scheme) -> dict[str, float]:
    """Name of every linear map -> SQNR of its rounded weights, in decibels."""
    _, layers = find_layers(model)
    return {
        name: sqnr(linear.weight, round_to_nearest(linear.weight, scheme).dequantize())
        for name, linear in named_linears(model, layers)
    }
