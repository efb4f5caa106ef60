"""Reconstructing a MobileNetV2 that lost channels, without labels and in closed form.

Every block's projection is fitted anew, by least squares, to the original block's
output.
"""

from collections.abc import Callable

import torch
from torch import nn

from ..core.progress import bar
from ..evaluation.moments import Moments
from ..models.vision import fold_batchnorm
from .channels import position_sampler, preprocessed_batches
from .mobilenet import Bypass, prunable_blocks
from .reconstruction import least_squares


@torch.no_grad()
def reconstruct_channels_(
    model: nn.Module,
    smaller: nn.Module,
    images: torch.Tensor,
    preprocess: Callable[[torch.Tensor], torch.Tensor],
) -> nn.Module:
    """Refit ``smaller`` in place, block by block, to compute what ``model`` does.

    He, Zhang and Sun 2017 (channel pruning, section 3.1) and Luo et al. 2017 (ThiNet,
    section 3.3): from the first block to the last, the projection is fitted by least
    squares, from what the smaller network's hidden channels hold *now* to the original
    block's output, so that a block also corrects the errors of the blocks before it.

    Args:
        model: the original, with ``features``, a sequence of stages.
        smaller: from ``remove_channels``, its batch-norms folded.
        images: uint8 (n, 3, h, w); some hundreds.
    """
    sample, model = position_sampler(), fold_batchnorm(model)
    smaller.eval()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in smaller.modules())
    blocks = list(prunable_blocks(smaller).values())
    device = next(smaller.parameters()).device
    batches = preprocessed_batches(model, images, preprocess, "images")
    original = [x.cpu() for x in batches]  # what comes into the current stage
    current = original
    stages = list(zip(model.features, smaller.features, strict=True))
    for i, (old, new) in enumerate(bar(stages, "reconstruction", unit="stage")):
        original = _run(old, original, device)
        if new in blocks:
            targets = original
            # A bypassed block computes nothing: the block before it is fitted to what
            # comes after the bypass, and the constant of the bypass isn't needed.
            for skipped, bypass in stages[i + 1 :]:
                if not isinstance(bypass, Bypass):
                    break
                targets = _run(skipped, targets, device)
                bypass.bias.zero_()
            _fit_projection_(new, current, targets, sample)
        current = _run(new, current, device)
    return smaller


def _run(stage: nn.Module, inputs: list, device: torch.device) -> list[torch.Tensor]:
    return [stage(x.to(device)).cpu() for x in inputs]


def _fit_projection_(
    block: nn.Module, inputs: list, targets: list, sample: Callable
) -> None:
    expand, depthwise, project, _ = block.conv
    device = project.weight.device
    moments = Moments.zeros(project.in_channels + project.out_channels)
    for x, target in zip(inputs, targets, strict=True):
        x, target = x.to(device), target.to(device)
        hidden = depthwise(expand(x))  # (batch, hidden, h, w)
        target = target - x if block.use_res_connect else target
        moments.add(torch.cat(sample(hidden, target), 1))
    prior = project.weight.flatten(1)  # (outputs, hidden)
    weight, bias = least_squares(moments, project.in_channels, prior=prior)
    project.weight.copy_(weight.view_as(project.weight))
    project.bias.copy_(bias)
