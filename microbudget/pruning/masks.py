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

from ..core.checks import as_mask
from ..core.errors import TrainingError
from ..core.modules import names_of, of_its_own
from ..models.bitsandbytes import require_floats

Masks = dict[str, torch.Tensor]
_PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Mask(nn.Module):
    """Multiplies a weight by its mask at every forward pass.

    A pruned weight's gradient is multiplied by zero as well, so whatever the optimizer
    does to the stored weight, the masked one stays zero.
    """

    def __init__(self, kept: torch.Tensor):
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.kept


def prunable_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of linear layers and convolutions, by the layer's name.

    Biases, norms and embeddings aren't pruned. Masked layers give masked weights.

    Raises:
        TrainingError: the weights are stored in four or eight bits.
    """
    require_floats(model, "Pruning")
    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, _PRUNABLE)
    }


def mask_(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """Put masks on a model's layers, in place. Training keeps them, and so do copies.

    On a layer that has a mask already both hold: pruned weights stay pruned. A layer
    that shares its weight (a head that is tied to the embedding) gets one of its own.

    Args:
        masks: layer's name -> bool tensor of its weight's shape; or zeros and ones.

    Raises:
        TrainingError: a mask of another shape, or with other numbers.
    """
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        mask = as_mask(mask, layer.weight.shape, TrainingError, name)
        own = of_its_own(model, layer)
        if own is not layer and len(names_of(model, layer)) == 1:
            layer.weight = own.weight  # the module stays, its weight is another
        mask = Mask(mask.to(layer.weight.device))
        parametrize.register_parametrization(layer, "weight", mask)
    return model


def make_permanent_(model: nn.Module) -> nn.Module:
    """Write the zeros into the weights and take the masks off, in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return model


def sparsity(model: nn.Module) -> float:
    """The fraction of zeros among all weights that can be pruned."""
    weights = prunable_weights(model).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)
