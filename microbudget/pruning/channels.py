"""Which hidden channels of MobileNetV2 to remove.

By their filters' norms, which looks at no picture; or by how well the other channels
could stand in for them on some pictures. ``shrinking`` removes, ``mending`` mends.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from ..core.errors import TrainingError
from ..core.progress import bar
from ..data.batching import batches
from ..evaluation.moments import Moments
from .mobilenet import blocks
from .reconstruction import allot, eliminate

_POSITIONS = 32  # read of every picture's map: neighbours say much the same
PER_BLOCK = 8e6  # what a block costs however narrow: calls, and waiting for threads
_TRAFFIC = 20.0  # multiplications that writing and reading one number is worth


def by_norm(model: nn.Module, share: float) -> dict[str, torch.Tensor]:
    """Keep this share of every block's channels, by the L2 norm of their filters.

    The filter of the expansion, times batch-norm's scale: magnitudes, no picture is
    looked at (Li et al. 2017, section 3.1; Liu et al. 2017 for the scales).
    """
    if not 0 < share <= 1:
        raise TrainingError(f"share={share}: keep a share above 0, 1 at most.")
    kept = {}
    for name, block in blocks(model).items():
        conv, norm = block.conv[0][0], block.conv[0][1]
        scale = conv.weight.detach().flatten(1).norm(dim=1)
        if isinstance(norm, nn.BatchNorm2d):
            scale = scale * (norm.weight / (norm.running_var + norm.eps).sqrt()).abs()
        keep = torch.zeros(len(scale), dtype=torch.bool)
        keep[scale.argsort(descending=True)[: max(1, round(share * len(scale)))]] = True
        kept[name] = keep
    return kept


def costs(model: nn.Module, size: int) -> dict[str, float]:
    """What one hidden channel of every block costs for a picture of ``size`` pixels.

    Multiplications, plus some for each number that is written and read again: on a
    CPU the early, large maps cost more time than their multiplications say.
    """
    shapes, handles = {}, []
    for name, block in blocks(model).items():

        def look(module, inputs, output, name=name):
            shapes[name] = inputs[0].shape[1:], output.shape[1:]

        handles.append(block.register_forward_hook(look))
    x = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    training = model.training
    try:
        with torch.inference_mode():
            model.eval()(x)  # or batch-norms would learn from a black picture
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    found = {}
    for name, ((ins, h, w), (outs, hh, ww)) in shapes.items():
        found[name] = h * w * (ins + _TRAFFIC) + hh * ww * (9 + outs + _TRAFFIC)
    return found


class Survey:
    """What a pass over some pictures says about every block's channels.

    Attributes:
        orders: block -> channels, the least missed first.
        errors: block -> error after 0, 1, … groups of channels are gone.
        group: channels that go together: odd widths waste vector registers.
    """

    def __init__(self, model, pictures, preprocess, group: int = 8, seed: int = 0):
        """Run ``model`` once over uint8 ``pictures`` (n, 3, h, w).

        Raises:
            TrainingError: no pictures, or NaN in the activations.
        """
        self.group, self.orders, self.errors = group, {}, {}
        self.residual = {n for n, b in blocks(model).items() if b.use_res_connect}
        moments = {
            name: Moments.zeros(block.conv[2].in_channels)
            for name, block in blocks(model).items()
        }
        pick, handles = picker(seed), []
        outputs = {  # their variance is the scale of a block's error
            name: Moments.zeros(block.conv[2].out_channels)
            for name, block in blocks(model).items()
        }
        for name, block in blocks(model).items():

            def look(module, inputs, name=name):
                moments[name].add(pick(inputs[0]))

            def outcome(module, inputs, output, name=name):
                outputs[name].add(pick(output))

            handles.append(block.conv[2].register_forward_pre_hook(look))
            handles.append(block.register_forward_hook(outcome))
        try:
            with torch.inference_mode():
                for x in batches_of(model, pictures, preprocess, "survey"):
                    model(x)
        finally:
            for handle in handles:
                handle.remove()
        for name, block in blocks(model).items():
            weight = (
                output_scale(block).view(-1, 1) * block.conv[2].weight.flatten(1).cpu()
            )
            weight, covariance = (
                weight.detach().double(),
                moments[name].matrix(centred=True),
            )
            self.orders[name], errors = eliminate(covariance, weight, group)
            own = torch.einsum("oi,ij,oj->", weight, covariance, weight)
            spread = outputs[name].matrix(centred=True).trace()
            self.errors[name] = errors * own / spread.clamp_min(1e-12)

    def keep(
        self, prices: Mapping[str, float], budget: float, fixed: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Channels to keep so that blocks cost ``budget`` of what they did.

        Args:
            prices: ``costs``, or any other cost of a channel of each block.
            fixed: what a block costs on top, however narrow, in the same unit; with it
                blocks with a residual may lose all channels, and save it.
        """
        errors = {name: curve.tolist() for name, curve in self.errors.items()}
        extra = fixed or 0.0
        left = {}  # block -> cost after 0, 1, … groups are gone
        for name, curve in errors.items():
            groups = range(len(curve) - 1, -1, -1)
            left[name] = [
                self.group * prices[name] * n + extra * (n > 0) for n in groups
            ]
        keeps = set(errors) if fixed is None else set(errors) - self.residual
        least = {name: int(name in keeps) for name in errors}
        gone = allot(errors, left, budget, least)
        kept = {}
        for name, order in self.orders.items():
            kept[name] = torch.ones(len(order), dtype=torch.bool)
            kept[name][order[: gone[name] * self.group]] = False
        return kept


def batches_of(model, pictures, preprocess, what: str) -> Iterator[torch.Tensor]:
    """Preprocessed batches on the model's device, channels last; model in eval mode."""
    if len(pictures) < 2:
        raise TrainingError(f"{len(pictures)} pictures: give some hundreds.")
    model.eval()
    device = next(model.parameters()).device
    size = 8 if device.type == "cpu" else 64  # a processor's cache holds the maps of 8
    for rows in bar(list(batches(len(pictures), size)), what, unit="batch"):
        x = preprocess(pictures[rows].to(device))
        yield x.contiguous(memory_format=torch.channels_last)


def picker(seed: int) -> Callable:
    """(n, c, h, w) maps -> (n·positions, c) rows, at the same random places of each."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*maps: torch.Tensor):
        n, _, h, w = maps[0].shape
        draw = torch.rand(n, h * w, generator=generator).argsort(1)[:, :_POSITIONS]
        places = draw.to(maps[0].device).unsqueeze(1)  # (n, 1, positions)
        rows = [
            m.flatten(2).gather(2, places.expand(-1, m.shape[1], -1)).transpose(1, 2)
            for m in maps
        ]
        flat = [r.flatten(0, 1) for r in rows]
        return flat[0] if len(flat) == 1 else flat

    return pick


def output_scale(block: nn.Module) -> torch.Tensor:
    """What the projection's outputs are multiplied by after it: (outputs,)."""
    norm = block.conv[3]
    if isinstance(norm, nn.BatchNorm2d):
        return (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().cpu()
    return torch.ones(block.conv[2].out_channels)
