"""Which hidden channels of MobileNetV2 to remove.

By their filters' norms, which looks at no image; or by how well the other channels can
replace them on some images.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..core.progress import bar
from ..data.batching import batches
from ..evaluation.moments import Moments
from ..models.vision import fold_batchnorm
from .mobilenet import prunable_blocks
from .reconstruction import allocate_budget, elimination_order

_POSITIONS = 32  # sampled per image and map: neighbouring pixels hold much the same
BLOCK_COST = 8e6  # of a block however narrow: calls, and waiting for threads
_COST_PER_VALUE = 20.0  # multiplications that writing and reading one number is worth


def largest_norm_channels(model: nn.Module, fraction: float) -> dict[str, torch.Tensor]:
    """Keep this fraction of every block's channels, by the L2 norm of their filters.

    The filter of the expansion, batch-norm folded in: magnitudes, no image is looked at
    (Li et al. 2017, section 3.1; Liu et al. 2017 for batch-norm's scales).
    """
    kept = {}
    for name, block in prunable_blocks(fold_batchnorm(model)).items():
        scores = block.conv[0][0].weight.detach().flatten(1).norm(dim=1)  # (hidden,)
        count = max(1, round(fraction * len(scores)))
        kept[name] = torch.zeros(len(scores), dtype=torch.bool)
        kept[name][scores.argsort(descending=True)[:count].cpu()] = True
    return kept


def channel_costs(model: nn.Module, size: int) -> dict[str, float]:
    """What one hidden channel of every block costs for an image of ``size`` pixels.

    Multiplications, plus some for each number that is written and read again: on a
    CPU the early, large maps cost more time than their multiplications say.
    """
    model, costs = fold_batchnorm(model), {}  # a copy: its hooks go with it
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
    """In which order every block can lose its channels, and the error then.

    Attributes:
        orders: block -> channels, the least important first.
        errors: block -> error of its output after 0, 1, … groups are removed and the
            projection is refitted, as a fraction of the output's variance.
        group_size: channels that are removed together: odd widths waste vector
            registers.
        removable: blocks with a residual, which can lose all channels.
    """

    orders: dict[str, torch.Tensor]
    errors: dict[str, torch.Tensor]
    group_size: int
    removable: set[str]

    def channels_to_keep(
        self, costs: Mapping[str, float], budget: float, block_cost: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Channels to keep so that all blocks cost ``budget`` of what they did.

        Args:
            costs: ``channel_costs``, or any other cost of a channel of each block.
            block_cost: what a block costs in addition, however narrow, in the same
                unit; with it, blocks with a residual may lose all channels and save it.

        Raises:
            TrainingError: a budget that can't be met.
        """
        costs_left, min_groups = {}, {}
        for name, curve in self.errors.items():
            costs_left[name] = [  # after 0, 1, … groups are removed
                self.group_size * costs[name] * groups
                + (block_cost or 0) * (groups > 0)
                for groups in range(len(curve) - 1, -1, -1)
            ]
            min_groups[name] = int(block_cost is None or name not in self.removable)
        errors = {name: curve.tolist() for name, curve in self.errors.items()}
        removed = allocate_budget(errors, costs_left, budget, min_groups)
        kept = {}
        for name, order in self.orders.items():
            kept[name] = torch.ones(len(order), dtype=torch.bool)
            kept[name][order[: removed[name] * self.group_size]] = False
        return kept


def channel_importance(
    model: nn.Module,
    images: torch.Tensor,
    preprocess: Callable[[torch.Tensor], torch.Tensor],
    group_size: int = 8,
) -> ChannelImportance:
    """Run ``model`` once over some images and rank every block's channels.

    The order is ``elimination_order``'s on the covariance of the hidden channels.

    Args:
        images: uint8 (n, 3, h, w).

    Raises:
        DataError: no images, or NaN in the activations.
    """
    model = fold_batchnorm(model)  # a copy: its hooks go with it
    blocks, sample = prunable_blocks(model), position_sampler()
    hidden = {n: Moments.zeros(b.conv[2].in_channels) for n, b in blocks.items()}
    outputs = {n: Moments.zeros(b.conv[2].out_channels) for n, b in blocks.items()}
    for name, block in blocks.items():

        def add_hidden(module, inputs, name=name):
            hidden[name].add(sample(inputs[0])[0])

        def add_output(module, inputs, output, name=name):
            outputs[name].add(sample(output)[0])

        block.conv[2].register_forward_pre_hook(add_hidden)
        block.register_forward_hook(add_output)
    with torch.inference_mode():
        for x in preprocessed_batches(model, images, preprocess, "importance"):
            model(x)
    orders, errors = {}, {}
    for name, block in blocks.items():
        weight = block.conv[2].weight.detach().flatten(1).cpu().double()
        covariance = hidden[name].matrix(centred=True)
        orders[name], curve = elimination_order(covariance, weight, group_size)
        # from a fraction of the projection's variance to one of the whole block's
        own = torch.einsum("oi,ij,oj->", weight, covariance, weight)
        spread = outputs[name].matrix(centred=True).trace()
        errors[name] = curve * own / spread.clamp_min(1e-12)
    residual = {name for name, block in blocks.items() if block.use_res_connect}
    return ChannelImportance(orders, errors, group_size, residual)


def preprocessed_batches(
    model: nn.Module, images: torch.Tensor, preprocess: Callable, description: str
) -> Iterator[torch.Tensor]:
    """Batches on the model's device, channels last; puts the model in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    size = 8 if device.type == "cpu" else 64  # a processor's cache holds the maps of 8
    for rows in bar(list(batches(len(images), size)), description, unit="batch"):
        x = preprocess(images[rows].to(device))
        yield x.contiguous(memory_format=torch.channels_last)


def position_sampler() -> Callable[..., list[torch.Tensor]]:
    """A function from (n, c, h, w) maps to (n·positions, c) rows.

    Several maps are read at the same random positions of each image.
    """
    generator = torch.Generator().manual_seed(0)

    def sample(*maps: torch.Tensor) -> list[torch.Tensor]:
        n, _, h, w = maps[0].shape
        draw = torch.rand(n, h * w, generator=generator).argsort(1)[:, :_POSITIONS]
        positions = draw.to(maps[0].device).unsqueeze(1)  # (n, 1, positions)
        rows = [  # each (n, positions, c)
            m.flatten(2).gather(2, positions.expand(-1, m.shape[1], -1)).transpose(1, 2)
            for m in maps
        ]
        return [r.flatten(0, 1) for r in rows]

    return sample
