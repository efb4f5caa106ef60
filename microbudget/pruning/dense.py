"""Making a layer smaller: the same layer with fewer outputs or fewer inputs."""

import torch
from torch import nn


def keep_outputs_(layer: nn.Module, kept: torch.Tensor) -> None:
    """Keep these outputs of a linear layer, convolution or batch-norm, in place.

    Args:
        kept: boolean (outputs,).
    """
    for name, parameter in list(layer.named_parameters()):
        smaller = parameter.detach()[_index(kept, parameter)].clone()
        setattr(layer, name, nn.Parameter(smaller, parameter.requires_grad))
    for name, buffer in list(layer.named_buffers()):
        if buffer.ndim:  # batch-norm's statistics, not its counter of batches
            setattr(layer, name, buffer[_index(kept, buffer)].clone())
    _set_size(layer, ("out_features", "out_channels", "num_features"), kept)


def keep_inputs_(layer: nn.Linear | nn.Conv2d, kept: torch.Tensor) -> None:
    """Keep these inputs of a linear layer or convolution, in place.

    Args:
        kept: boolean (inputs,).
    """
    weight = layer.weight
    smaller = weight.detach()[:, _index(kept, weight)].clone()
    layer.weight = nn.Parameter(smaller, weight.requires_grad)
    _set_size(layer, ("in_features", "in_channels"), kept)


def _index(kept: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return kept.nonzero().flatten().to(where.device)


def _set_size(layer: nn.Module, names: tuple, kept: torch.Tensor) -> None:
    for name in names:
        if hasattr(layer, name):
            setattr(layer, name, int(kept.sum()))
