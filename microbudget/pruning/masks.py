"""Masks on a network's layers: zeros that training keeps.

A mask is a boolean tensor of its weight's shape, ``True`` where the weight stays. The
masks of a network are a dictionary from a layer's name to its mask; ``criteria`` makes
them. Torch's parametrization multiplies each weight by its mask at every forward pass,
until ``make_permanent_`` writes the zeros into the weights. (``torch.nn.utils.prune``
does the same by a hook, but its masked networks can't be copied.)
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..core.errors import TrainingError

Masks = dict[str, torch.Tensor]
_PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Mask(nn.Module):
    """Multiplies a weight by its mask at every forward pass.

    A pruned weight's gradient is multiplied by zero as well, so whatever the optimizer
    does to the stored weight, the masked one stays zero.
    """

    def __init__(self, kept: torch.Tensor):
        super().__init__()
        self.register_buffer("kept", kept.clone())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.kept


def prunable_weights(
    model: nn.Module, kinds: type | tuple = _PRUNABLE
) -> dict[str, torch.Tensor]:
    """The weights of linear layers and convolutions, by the layer's name.

    Biases, norms and embeddings aren't pruned. Masked layers give masked weights.

    Raises:
        TrainingError: there are none.
    """
    found = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }
    if not found:
        raise TrainingError("This model has no linear or convolution weights to prune.")
    return found


def mask_(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """Put masks on a model's layers, in place. Training keeps them, and so do copies.

    On a layer that has a mask already both hold: pruned weights stay pruned.
    """
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        mask = mask.to(layer.weight.device)
        if parametrize.is_parametrized(layer, "weight"):
            layer.parametrizations.weight[0].kept &= mask
        else:
            parametrize.register_parametrization(layer, "weight", Mask(mask))
    return model


def make_permanent_(model: nn.Module) -> nn.Module:
    """Write the zeros into the weights and take the masks off, in place."""
    for name in masks_of(model):
        parametrize.remove_parametrizations(model.get_submodule(name), "weight")
    return model


def masks_of(model: nn.Module) -> Masks:
    """The masks that are on a model's layers."""
    return {
        name.removesuffix(".parametrizations.weight.0"): module.kept.clone()
        for name, module in model.named_modules()
        if isinstance(module, Mask)
    }


def sparsity(model: nn.Module) -> float:
    """The fraction of zeros among all weights that can be pruned."""
    weights = prunable_weights(model).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)
