"""Masks on a network's layers: zeros that training keeps.

A mask is a boolean tensor of its weight's shape, ``True`` where the weight stays. Masks
of a network are a dictionary from a layer's path to its mask; ``pruning`` makes them.
Torch's own parametrisation multiplies each weight by its mask at every forward, until
``make_permanent`` writes the zeros into the weights.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..core.errors import TrainingError

Masks = dict[str, torch.Tensor]
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weights(model: nn.Module, kinds: tuple = _KINDS) -> dict[str, torch.Tensor]:
    """The weights that can be pruned, by the path of their layer: linear, convolution.

    Biases, norms and embeddings aren't among them. Masked layers give masked weights.

    Raises:
        TrainingError: there are none, or some are NaN or infinite.
    """
    found = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }
    if not found:
        raise TrainingError("This model has no linear or convolution weights to prune.")
    for name, weight in found.items():
        if not torch.isfinite(weight).all():
            raise TrainingError(
                f"{name}.weight holds NaN or infinity: nothing to rank."
            )
    return found


class Mask(nn.Module):
    """Multiplies a weight by its mask, at every forward: so do the gradients.

    The weight under a zero gets no gradient, whatever the optimizer does with it.
    """

    def __init__(self, kept: torch.Tensor):
        super().__init__()
        self.register_buffer("kept", kept.clone())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.kept

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """What to store when a weight is assigned."""
        return weight


def apply(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """Put masks on a model's layers, in place; training keeps them, copies too.

    On a masked layer both masks hold: pruned weights stay so. While masks are on, each
    forward multiplies weights by them: ``make_permanent`` when done.

    Raises:
        TrainingError: no such layer, a mask of another shape, not boolean, or without
            a single weight left. The model is then unchanged.
    """
    layers = dict(model.named_modules())
    for name, mask in masks.items():
        layer = layers.get(name)
        if not isinstance(layer, _KINDS):
            raise TrainingError(
                f"The model has no linear or convolution layer {name!r}."
            )
        if mask.dtype != torch.bool or mask.shape != layer.weight.shape:
            raise TrainingError(
                f"The mask of {name} is {mask.dtype} {tuple(mask.shape)}; it must be "
                f"boolean, of the weight's shape {tuple(layer.weight.shape)}."
            )
        if not (mask.cpu() & _kept(layer)).any():
            raise TrainingError(
                f"The mask of {name} leaves no weight at all: what follows would see "
                "nothing. Prune less, or leave this layer out."
            )
    for name, mask in masks.items():
        layer, mask = layers[name], mask.to(layers[name].weight.device)
        if parametrize.is_parametrized(layer, "weight"):
            own = _own(layer)
            own.kept &= mask
        else:
            parametrize.register_parametrization(layer, "weight", Mask(mask))
    return model


def make_permanent(model: nn.Module) -> nn.Module:
    """Write the zeros into the weights and take the masks off, in place."""
    for module in model.modules():
        if isinstance(module, _KINDS) and parametrize.is_parametrized(module, "weight"):
            _own(module)
            parametrize.remove_parametrizations(module, "weight")
    return model


def masks_of(model: nn.Module) -> Masks:
    """The masks that are on a model's layers."""
    return {
        name: _own(module).kept.clone()
        for name, module in model.named_modules()
        if isinstance(module, _KINDS) and parametrize.is_parametrized(module, "weight")
    }


def sparsity(model: nn.Module) -> dict[str, float]:
    """Share of zeros in every layer that can be pruned; ``""`` is their whole."""
    zeros = {n: (int((w == 0).sum()), w.numel()) for n, w in weights(model).items()}
    report = {name: none / all_ for name, (none, all_) in zeros.items()}
    none, all_ = map(sum, zip(*zeros.values(), strict=True))
    return report | {"": none / all_}


def _own(layer: nn.Module) -> Mask:
    (first, *more) = layer.parametrizations.weight
    if more or not isinstance(first, Mask):
        raise TrainingError(
            f"The weight of this {type(layer).__name__} is computed by "
            f"{type(first).__name__}: take that off first."
        )
    return first


def _kept(layer: nn.Module) -> torch.Tensor:
    if parametrize.is_parametrized(layer, "weight"):
        return _own(layer).kept.cpu()
    return torch.ones((), dtype=torch.bool)
