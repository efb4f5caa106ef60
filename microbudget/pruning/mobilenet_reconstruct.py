"""Mending a MobileNetV2 that lost channels, without labels.

In closed form: every block's projection is fitted anew, by least squares, to what the
original block gave.
"""

from collections.abc import Callable

import torch
from torch import nn

from ..core.progress import bar
from ..evaluation.moments import Moments
from ..models.vision import fold_batchnorm
from .channels import batches_of, output_scale, picker
from .mobilenet import Bypass, blocks
from .reconstruction import RIDGE, solve


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    smaller: nn.Module,
    pictures: torch.Tensor,
    preprocess: Callable[[torch.Tensor], torch.Tensor],
    *,
    ridge: float = RIDGE,
    seed: int = 0,
) -> nn.Module:
    """Mend ``smaller`` in place, block by block, to compute what ``model`` does.

    He, Zhang and Sun 2017 (channel pruning, section 3.1) and Luo et al. 2017 (ThiNet,
    section 3.3): from the first block to the last, the projection is fitted by least
    squares, from what the smaller network's hidden channels hold *now* to the original
    block's output, so that a block also mends what the blocks before it got wrong.

    Args:
        model: the original, with ``features``, a sequence of stages.
        smaller: ``remove``'s, batch-norms folded or not.
        pictures: uint8 (n, 3, h, w); some hundreds.

    Raises:
        TrainingError: no pictures. DataError: NaN.
    """
    pick, model = picker(seed), fold_batchnorm(model)
    smaller.eval()
    own = {id(block) for block in blocks(smaller).values()}
    device = next(smaller.parameters()).device
    theirs = [x.cpu() for x in batches_of(model, pictures, preprocess, "pictures")]
    ours = theirs
    stages = list(zip(model.features, smaller.features, strict=True))
    for i, (old, new) in enumerate(bar(stages, "reconstruction", unit="stage")):
        theirs = [old(x.to(device)).cpu() for x in theirs]
        if id(new) in own:
            wanted = theirs  # of a block before bypasses: what comes after them
            for skipped, bypass in stages[i + 1 :]:
                if not isinstance(bypass, Bypass):
                    break
                wanted = [skipped(x.to(device)).cpu() for x in wanted]
                bypass.bias.zero_()
            ours = _fit_projection(new, ours, wanted, pick, ridge, device)
        else:
            ours = [new(x.to(device)).cpu() for x in ours]
    return smaller


def views(pictures: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Each picture once more: mirrored, and cut to 70 to 100 % of its width.

    Args:
        pictures: uint8 (n, 3, h, w); so is the result.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = torch.empty_like(pictures)
    height, width = pictures.shape[-2:]
    for i, (share, *corner) in enumerate(
        torch.rand(len(pictures), 3, generator=generator)
    ):
        h, w = (max(1, int((0.7 + 0.3 * share) * side)) for side in (height, width))
        top, left = int(corner[0] * (height - h + 1)), int(corner[1] * (width - w + 1))
        cut = pictures[i : i + 1, :, top : top + h, left : left + w].flip(-1).float()
        whole = nn.functional.interpolate(cut, (height, width), mode="bilinear")
        seen[i] = whole[0].clamp(0, 255).to(torch.uint8)
    return seen


def _fit_projection(block, inputs, targets, pick, ridge, device) -> list[torch.Tensor]:
    """Fit a block's projection to its targets; what the block gives then."""
    project, norm = block.conv[2], block.conv[3]
    moments = Moments.zeros(project.in_channels + project.out_channels)
    hidden = []
    for x, t in zip(inputs, targets, strict=True):
        x = x.to(device)
        inner = block.conv[1](block.conv[0](x))  # (batch, hidden, h, w)
        t = t.to(device) - x if block.use_res_connect else t.to(device)
        moments.add(torch.cat(pick(inner, t), 1))
        hidden.append(inner.cpu())
    prior = output_scale(block).view(-1, 1) * project.weight.flatten(1).cpu()
    weight, bias = solve(moments, project.in_channels, ridge, prior)
    project.weight.copy_(weight.view_as(project.weight))
    bias = bias.to(device)
    if isinstance(norm, nn.BatchNorm2d):  # as a plain addition: scale 1, and the bias
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        bias = bias + norm.running_mean
    (project if project.bias is not None else norm).bias.copy_(bias)
    outputs = []
    for x, inner in zip(inputs, hidden, strict=True):
        y = norm(project(inner.to(device))).cpu()
        outputs.append(x + y if block.use_res_connect else y)
    return outputs
