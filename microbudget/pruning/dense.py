"""Making layers smaller: the same layer with fewer outputs or fewer inputs."""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from ..core.errors import TrainingError


def check_kept(kept: Mapping, widths: Mapping, removable: Collection = ()) -> None:
    """Check what a user wants to keep: name -> boolean (width,).

    Raises:
        TrainingError: an unknown name, a mask that doesn't fit, or one that keeps
            nothing of what isn't ``removable``.
    """
    for name, keep in kept.items():
        if name not in widths:
            raise TrainingError(f"Nothing to prune in {name!r}: choose of {[*widths]}.")
        if keep.dtype != torch.bool or keep.shape != (widths[name],):
            raise TrainingError(
                f"{name!r}: expected {widths[name]} booleans, got {keep.dtype} "
                f"{tuple(keep.shape)}."
            )
        if not keep.any() and name not in removable:
            raise TrainingError(f"{name!r} would lose everything: keep at least one.")


def keep_outputs_(layer: nn.Module, kept: torch.Tensor) -> None:
    """Keep these outputs of a linear layer, convolution or batch-norm, in place.

    Args:
        kept: boolean (outputs,).
    """
    for name, parameter in list(layer.named_parameters()):
        smaller = parameter.detach()[kept.to(parameter.device)]
        setattr(layer, name, nn.Parameter(smaller, parameter.requires_grad))
    for name, buffer in list(layer.named_buffers()):
        if buffer.ndim:  # batch-norm's statistics, not its counter of batches
            setattr(layer, name, buffer[kept.to(buffer.device)])
    _set_size(layer, ("out_features", "out_channels", "num_features"), kept)


def keep_inputs_(layer: nn.Linear | nn.Conv2d, kept: torch.Tensor) -> None:
    """Keep these inputs of a linear layer or convolution, in place.

    Args:
        kept: boolean (inputs,).
    """
    weight = layer.weight
    smaller = weight.detach()[:, kept.to(weight.device)]
    layer.weight = nn.Parameter(smaller, weight.requires_grad)
    _set_size(layer, ("in_features", "in_channels"), kept)


def _set_size(layer: nn.Module, names: tuple, kept: torch.Tensor) -> None:
    for name in names:
        if hasattr(layer, name):
            setattr(layer, name, int(kept.sum()))
