"""How sensitive the model is to rounding one part of it, and how noisy each weight."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from ..core.progress import bar
from ..quantization.affine import QuantConfig, round_to_nearest, sqnr
from .calibrate import linear_layers


def weights_by_layer(model: nn.Module) -> dict[int, list[str]]:
    """Number of a transformer layer -> names of its linear layers' weights."""
    found: dict[int, list[str]] = {}
    for name in linear_layers(model):
        number = int(re.search(r"\d+", name).group())  # model.layers.7.mlp.up_proj
        found.setdefault(number, []).append(f"{name}.weight")
    return found


def weights_by_kind(model: nn.Module) -> dict[str, list[str]]:
    """Kind (``q_proj``, ``down_proj`` …) -> names of its weights in all layers.

    The embeddings are a kind of their own, with the head that shares them.
    """
    found: dict[str, list[str]] = {}
    for name in linear_layers(model):
        found.setdefault(name.rpartition(".")[2], []).append(f"{name}.weight")
    table = model.get_input_embeddings().weight
    found["embeddings"] = [n for n, p in model.named_parameters() if p is table]
    return found


@torch.no_grad()
def measure_sensitivity(
    model: nn.Module,
    parts: Mapping[object, Sequence[str]],
    config: QuantConfig,
    score: Callable[[], float],
) -> dict[object, float]:
    """Round one part to nearest, score the model, restore the part; for every part.

    Args:
        parts: label -> names of parameters (matrices).
        score: of the model as it is, such as its KL divergence to the original.
    """
    parameters, found = dict(model.named_parameters()), {}
    for label, names in bar(parts.items(), "sensitivity", unit="part"):
        before = {name: parameters[name].clone() for name in names}
        try:
            for name in names:
                rounded = round_to_nearest(parameters[name], config).dequantize()
                parameters[name].copy_(rounded)
            found[label] = score()
        finally:
            for name, weight in before.items():
                parameters[name].copy_(weight)
    return found


@torch.no_grad()
def weight_noise(model: nn.Module, config: QuantConfig) -> dict[str, float]:
    """Name of every linear layer -> SQNR of its rounded weights, in decibels."""
    return {
        name: sqnr(linear.weight, round_to_nearest(linear.weight, config).dequantize())
        for name, linear in linear_layers(model).items()
    }
