"""Which hidden channels of MobileNetV2 to remove, and refitting what is left.

Channels are ranked by the norms of their filters, without any image, or by how well the
other channels can replace them on some images. Then every block's projection is fitted
anew, by least squares and without labels, to the original block's output.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..core.errors import TrainingError
from ..core.progress import bar
from ..evaluation.moments import Moments
from ..models.vision import fold_batchnorm
from .criteria import row_masks
from .mobilenet import Bypass, prunable_blocks
from .reconstruction import allocate_budget, elimination_order, refit_

GROUP_SIZE = 8  # channels removed together: odd widths waste vector registers
_BATCH_SIZE = 8  # images: their activations fit into a processor's cache
_POSITIONS = 32  # sampled per image and map: neighbouring pixels hold much the same
# Rough allowances for a CPU, in multiplications: what calling a block costs, however
# narrow it is, and what writing and reading one activation costs.
BLOCK_COST = 8e6
_COST_PER_VALUE = 20.0


def largest_norm_channels(model: nn.Module, fraction: float) -> dict[str, torch.Tensor]:
    """Keep this fraction of every block's channels, by the L2 norm of their filters.

    The filter is the expansion's, with batch-norm folded in. Li et al. 2017 (Pruning
    filters for efficient ConvNets) rank filters by their norm; Liu et al. 2017 rank
    channels by batch-norm's scales.
    """
    blocks = prunable_blocks(fold_batchnorm(model))
    filters = {n: b.conv[0][0].weight.detach() for n, b in blocks.items()}
    masks = row_masks(filters, 1 - fraction)  # each (hidden, inputs, 1, 1)
    return {name: mask[:, 0, 0, 0].cpu() for name, mask in masks.items()}


def channel_costs(model: nn.Module, size: int) -> dict[str, float]:
    """What one hidden channel of every block costs for an image of ``size`` pixels.

    Its multiplications, plus a fixed cost for each activation that is written and read
    again: on a CPU the early stages, whose activations are large, take more time than
    their multiplications alone.
    """
    costs = {}
    model = fold_batchnorm(model)  # a throw-away copy: its hooks needn't be removed
    for name, block in prunable_blocks(model).items():

        def note(module, inputs, output, name=name):
            (_, inputs_, h, w), (_, outputs, h2, w2) = inputs[0].shape, output.shape
            expand = h * w * (inputs_ + _COST_PER_VALUE)
            costs[name] = expand + h2 * w2 * (9 + outputs + _COST_PER_VALUE)

        block.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    return costs


@dataclass(frozen=True)
class ChannelImportance:
    """The order in which each block's channels can be removed, and the error it makes.

    Attributes:
        orders: block -> channels, the least important first.
        errors: block -> error of its output after 0, 1, … groups are removed and the
            projection is refitted, as a fraction of the output's variance.
        removable: blocks with a residual, which can lose all channels.
    """

    orders: dict[str, torch.Tensor]
    errors: dict[str, torch.Tensor]
    removable: set[str]

    def channels_to_keep(
        self, costs: Mapping[str, float], budget: float, block_cost: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Channels to keep so that all blocks cost at most the fraction ``budget``.

        Args:
            costs: ``channel_costs``, or any other cost of a channel of each block.
            block_cost: what a block costs in addition, however narrow, in the same
                unit; with it, blocks with a residual may lose all channels and save it.

        Raises:
            TrainingError: a budget that can't be met.
        """
        errors, costs_left = {}, {}  # after 0, 1, … groups are removed
        for name, curve in self.errors.items():
            groups = torch.arange(len(curve), dtype=torch.float64).flip(0)  # left
            cost = GROUP_SIZE * costs[name] * groups + (block_cost or 0) * (groups > 0)
            keep_one = block_cost is None or name not in self.removable
            stop = len(curve) - keep_one  # the last entry is without any channels
            errors[name], costs_left[name] = curve[:stop], cost[:stop]
        removed = allocate_budget(errors, costs_left, budget)
        kept = {}
        for name, order in self.orders.items():
            kept[name] = torch.ones(len(order), dtype=torch.bool)
            kept[name][order[: removed[name] * GROUP_SIZE]] = False
        return kept


def channel_importance(
    model: nn.Module,
    images: torch.Tensor,
    preprocess: Callable[[torch.Tensor], torch.Tensor],
) -> ChannelImportance:
    """Run ``model`` once over some images and rank every block's channels.

    The order is ``elimination_order``'s on the covariance of the hidden channels.

    Args:
        images: uint8 (n, 3, h, w).

    Raises:
        DataError: no images, or NaN in the activations.
    """
    model = fold_batchnorm(model)  # a throw-away copy: its hooks needn't be removed
    blocks, draws = prunable_blocks(model), torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    hidden = {n: Moments.zeros(b.conv[2].in_channels) for n, b in blocks.items()}
    outputs = {n: Moments.zeros(b.conv[2].out_channels) for n, b in blocks.items()}
    for name, block in blocks.items():

        def add_hidden(module, inputs, name=name):
            hidden[name].add(_sample(draws, inputs[0])[0])

        def add_output(module, inputs, output, name=name):
            outputs[name].add(_sample(draws, output)[0])

        block.conv[2].register_forward_pre_hook(add_hidden)
        block.register_forward_hook(add_output)
    with torch.inference_mode():
        for x in bar(images.split(_BATCH_SIZE), "importance", unit="batch"):
            model(_to_input(x, preprocess, device))
    orders, errors = {}, {}
    for name, block in blocks.items():
        weight = block.conv[2].weight.detach().flatten(1).cpu().double()
        orders[name], curve = elimination_order(hidden[name], weight, GROUP_SIZE)
        covariance = hidden[name].matrix(centred=True)
        # The curve is relative to the variance of the projection's output. It is made
        # relative to that of the block's output, so that blocks can be compared.
        own = torch.einsum("oi,ij,oj->", weight, covariance, weight)
        spread = outputs[name].matrix(centred=True).trace()
        errors[name] = curve * own / spread.clamp_min(1e-12)
    residual = {name for name, block in blocks.items() if block.use_res_connect}
    return ChannelImportance(orders, errors, residual)


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
        images: uint8 (n, 3, h, w); some hundreds. Their activations after one stage at
            a time are in memory.

    Raises:
        TrainingError: ``smaller`` has batch-norms.
    """
    draws = torch.Generator().manual_seed(0)
    model = fold_batchnorm(model)
    smaller.eval()
    if any(isinstance(module, nn.BatchNorm2d) for module in smaller.modules()):
        raise TrainingError(
            "The smaller network still has batch-norms: fold them first "
            "(models.vision.fold_batchnorm)."
        )
    blocks = list(prunable_blocks(smaller).values())
    device = next(smaller.parameters()).device
    original = [  # what comes into the current stage
        _to_input(x, preprocess, device).cpu() for x in images.split(_BATCH_SIZE)
    ]
    current = original
    stages = list(zip(model.features, smaller.features, strict=True))
    for i, (old, new) in enumerate(bar(stages, "reconstruction", unit="stage")):
        original = _run(old, original, device)
        if new in blocks:
            targets = original
            # A block that lost all its channels only adds a constant (Bypass). The last
            # real block before it is fitted to the original output behind it, which
            # makes that constant superfluous.
            for skipped, bypass in stages[i + 1 :]:
                if not isinstance(bypass, Bypass):
                    break
                targets = _run(skipped, targets, device)
                bypass.bias.zero_()
            _fit_projection_(new, current, targets, draws)
        current = _run(new, current, device)
    return smaller


def _run(stage: nn.Module, inputs: list, device: torch.device) -> list[torch.Tensor]:
    return [stage(x.to(device)).cpu() for x in inputs]


def _fit_projection_(
    block: nn.Module, inputs: list, targets: list, draws: torch.Generator
) -> None:
    expand, depthwise, project, _ = block.conv
    device = project.weight.device
    moments = Moments.zeros(project.in_channels + project.out_channels)
    for x, target in zip(inputs, targets, strict=True):
        x, target = x.to(device), target.to(device)
        hidden = depthwise(expand(x))  # (batch, hidden, h, w)
        target = target - x if block.use_res_connect else target
        moments.add(torch.cat(_sample(draws, hidden, target), 1))
    refit_(project, moments)


def _to_input(
    images: torch.Tensor, preprocess: Callable, device: torch.device
) -> torch.Tensor:
    """uint8 images -> what the model takes, on its device and channels last."""
    x = preprocess(images.to(device))
    return x.contiguous(memory_format=torch.channels_last)


def _sample(generator: torch.Generator, *maps: torch.Tensor) -> list[torch.Tensor]:
    """Rows (n·positions, c) of (n, c, h, w) maps, all at the same random positions."""
    n, _, h, w = maps[0].shape
    draw = torch.rand(n, h * w, generator=generator).argsort(1)[:, :_POSITIONS]
    positions = draw.to(maps[0].device).unsqueeze(2)  # (n, positions, 1)
    return [
        torch.take_along_dim(m.flatten(2).mT, positions, 1).flatten(0, 1) for m in maps
    ]
