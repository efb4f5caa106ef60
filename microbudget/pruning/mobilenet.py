"""Removing hidden channels of MobileNetV2: a smaller dense network.

An inverted residual widens its input to hidden channels (1×1), filters each on its own
(depthwise) and projects them back (1×1). A hidden channel lives inside its block: it
can be removed, with its row of the expansion, its filter, and its column of the
projection, and no other block changes. Zeroing the *column* makes removal exact.
Zeroing the channel's filters does not: batch-norm gives the silent channel its bias,
and the projection reads that.

Kept channels are a dictionary, block's name -> boolean (hidden,), ``True`` to keep. A
block with a residual may lose all of them: what it adds is then a constant.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual

from ..core.modules import replace_layer
from .dense import check_kept, keep_inputs_, keep_outputs_

Kept = Mapping[str, torch.Tensor]


class Bypass(nn.Module):
    """A residual block without channels: it adds a constant to its input.

    Attributes:
        bias: (1, channels, 1, 1).
    """

    def __init__(self, bias: torch.Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone().view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias


def prunable_blocks(model: nn.Module) -> dict[str, InvertedResidual]:
    """The inverted residuals that have hidden channels of their own, by name.

    The first one doesn't expand: its hidden channels are its input.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, InvertedResidual) and len(module.conv) == 4
    }


def hidden_channels(model: nn.Module) -> dict[str, int]:
    """Hidden channels of every block, in order; 0 where it is bypassed."""
    blocks = prunable_blocks(model)
    return {
        name: blocks[name].conv[2].in_channels if name in blocks else 0
        for name, module in model.named_modules()
        if name in blocks or isinstance(module, Bypass)
    }


def mask_channels(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy whose projections ignore the other channels: same size, same speed.

    Raises:
        TrainingError: an unknown block, a mask that doesn't fit, or one that keeps
            nothing of a block without a residual.
    """
    model = _checked_copy(model, kept)
    for name, block in prunable_blocks(model).items():
        if name in kept:
            weight = block.conv[2].weight.data  # (outputs, hidden, 1, 1)
            weight[:, ~kept[name].to(weight.device)] = 0
    return model


@torch.no_grad()
def remove_channels(model: nn.Module, kept: Kept) -> nn.Module:
    """A smaller copy without the other channels.

    It computes what ``mask_channels``' does; before and after batch-norms are folded.

    Raises:
        TrainingError: as ``mask_channels``.
    """
    model = _checked_copy(model, kept)
    for name, block in prunable_blocks(model).items():
        if name not in kept:
            continue
        if not kept[name].any():
            zeros = torch.zeros_like(block.conv[2].weight[:1])  # (1, hidden, 1, 1)
            constant = block.conv[2:].eval()(zeros)  # the batch-norm's, if any
            replace_layer(model, name, Bypass(constant))
            continue
        expand, depthwise, project = block.conv[:3]
        for stage in (expand, depthwise):  # convolution, batch-norm or identity, ReLU6
            keep_outputs_(stage[0], kept[name])
            keep_outputs_(stage[1], kept[name])
        depthwise[0].groups = depthwise[0].in_channels = depthwise[0].out_channels
        keep_inputs_(project, kept[name])
    return model


def _checked_copy(model: nn.Module, kept: Kept) -> nn.Module:
    blocks, widths = prunable_blocks(model), hidden_channels(model)
    no_residual = {name for name, b in blocks.items() if not b.use_res_connect}
    check_kept(kept, widths, removable=widths.keys() - no_residual)
    return copy.deepcopy(model)
