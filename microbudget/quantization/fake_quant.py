"""Simulated quantization: a model computed in floats that can only take few values.

What accuracy few bits will have, without their speed: a float multiplication by rounded
numbers takes as long as any other. The same modules, with the ranges of their inputs
found, are post-training static quantization; trained further, quantization-aware
training (Jacob et al. 2018, section 3); with ranges looked for at every call, dynamic.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..core.errors import QuantizationError
from ..core.progress import bar
from ..models.mobilenet import SamePadConv2d
from .mapping import affine, extent, of_weight
from .observers import METHODS

KINDS = (nn.Conv2d, nn.Linear)
_EXACTLY = (*KINDS, SamePadConv2d)
_KEPT = 8192  # numbers of an activation that calibration keeps from each batch


class Simulated(nn.Module):
    """A convolution or linear map whose weights and inputs are on grids.

    Attributes:
        inner: the map itself, with float weights that may learn.
        bits, input_bits: of weights and inputs; 0: left as they are.
        keep: dimensions of the weight that have scales of their own.
        low, high: buffers, the range of the inputs; NaN before calibration.
    """

    def __init__(self, inner, bits: int, input_bits: int, keep, dynamic: bool):
        super().__init__()
        self.inner, self.bits, self.input_bits = inner, bits, input_bits
        self.keep, self.dynamic, self.corrected = tuple(keep), dynamic, False
        unknown = torch.tensor(float("nan"), device=inner.weight.device)
        self.register_buffer("low", unknown)
        self.register_buffer("high", unknown.clone())
        self.seen: _Seen | None = None  # while calibrating

    def weight_mapping(self):
        return of_weight(self.inner.weight, self.bits, self.keep)

    def input_mapping(self):
        """Of the calibrated range.

        Raises:
            QuantizationError: not calibrated yet.
        """
        if torch.isnan(self.low):
            raise QuantizationError(
                "The inputs' range isn't known: run simulated.calibrate(model, …) on "
                "some data first, or use dynamic=True."
            )
        return affine(self.low, self.high, self.input_bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.seen is not None:
            return self._look(x)
        if self.input_bits:
            mapping = (
                affine(*extent(x.detach()), self.input_bits)
                if self.dynamic
                else self.input_mapping()
            )
            x = mapping.simulate(x)
        return self._map(x) if self.bits else self.inner(x)

    def _map(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight_mapping().simulate(self.inner.weight)
        return torch.func.functional_call(self.inner, {"weight": weight}, (x,))

    def _look(self, x: torch.Tensor) -> torch.Tensor:
        """Compute in floats, and note the inputs and what rounding would shift."""
        self.seen.add(x)
        y = self.inner(x)
        if self.seen.correct and self.bits and self.inner.bias is not None:
            is_linear = isinstance(self.inner, nn.Linear)
            shift = (self._map(x) - y).movedim(-1 if is_linear else -3, 0).flatten(1)
            self.seen.shift = self.seen.shift + shift.sum(1)
            self.seen.count += shift.shape[1]
        return y


def simulate(
    model: nn.Module,
    bits: int | Mapping[str, int] = 8,
    input_bits: int = 8,
    *,
    per_channel: bool = True,
    dynamic: bool = False,
) -> nn.Module:
    """A copy of ``model`` with every convolution and linear map simulated.

    Fold batch-norms first (``models.vision.fold_batchnorm``): they would be extra work.

    Args:
        bits: of the weights; or name of a map -> bits, for mixed precision.
        input_bits: of the activations that go into each map; 0: floats.
        per_channel: a scale for every output channel, else one a weight.
        dynamic: inputs' ranges are taken from each batch, without calibration.

    Raises:
        QuantizationError: nothing to quantize, a name that isn't there.
    """
    if parts(model):
        raise QuantizationError("This model is simulated already: take the original.")
    model = copy.deepcopy(model)
    # exactly these types: of a subclass, as in nn.MultiheadAttention, others may read
    # the weight, and it would no longer have one
    found = {n: m for n, m in model.named_modules() if type(m) in _EXACTLY}
    if "" in found:
        raise QuantizationError(
            "The model is the map itself: put it into a Sequential."
        )
    if not found:
        raise QuantizationError("There is no convolution or linear map to quantize.")
    if isinstance(bits, Mapping) and (strange := set(bits) ^ set(found)):
        raise QuantizationError(
            f"bits must name every map once: {sorted(strange)[:3]}."
        )
    for name, module in found.items():
        own = bits[name] if isinstance(bits, Mapping) else bits
        keep = (0,) if per_channel else ()
        new = Simulated(module, own, input_bits, keep, dynamic)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model


def parts(model: nn.Module) -> dict[str, Simulated]:
    """The simulated maps by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Simulated)}


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    method: str = "min-max",
    *,
    correct: bool = False,
) -> nn.Module:
    """Find the inputs' ranges from calibration data, in place.

    Args:
        batches: inputs of the model; never those it will be judged by.
        method: a name in ``ranges.METHODS``.
        correct: take from every bias what the rounded weights add to the mean of that
            output (Nagel et al. 2019, arXiv:1906.04721, section 4.2): a depthwise
            filter has nine weights, whose errors don't cancel. Only once a model.

    Raises:
        QuantizationError: an unknown method, no data, a map that no data reached.
    """
    if method not in METHODS:
        raise QuantizationError(f"method={method!r}: use one of {list(METHODS)}.")
    maps = parts(model)
    if correct and any(module.corrected for module in maps.values()):
        raise QuantizationError("Biases are corrected once: simulate the model anew.")
    model.eval()
    device = next(model.parameters()).device
    try:
        for module in maps.values():
            module.seen = _Seen(correct)
        for batch in bar(batches, "calibration", unit="batch"):
            model(batch.to(device))
        for name, module in maps.items():
            if not module.seen.samples:
                raise QuantizationError(f"No calibration data reached {name}.")
        for module in maps.values():
            seen = module.seen
            ends = torch.stack([seen.low, seen.high])  # samples may have missed them
            of = ends if method == "min-max" else torch.cat(seen.samples)
            low, high = METHODS[method](of, bits=module.input_bits or 8)
            module.low.fill_(low)
            module.high.fill_(high)
            if seen.count:
                module.inner.bias -= seen.shift / seen.count
                module.corrected = True
    finally:
        for module in maps.values():
            module.seen = None
    return model


class _Seen:
    """What calibration has seen of one map: numbers drawn, ends, and a shift."""

    def __init__(self, correct: bool):
        self.correct, self.count, self.shift = correct, 0, 0.0
        self.samples: list[torch.Tensor] = []
        self.generator = torch.Generator().manual_seed(0)

    def add(self, x: torch.Tensor) -> None:
        flat = x.detach().flatten().float()
        low, high = (end.flatten()[0] for end in extent(flat))
        if self.samples:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        self.low, self.high = low, high
        if len(flat) > _KEPT:  # at random: a fixed step may meet one column only
            drawn = torch.randint(len(flat), (_KEPT,), generator=self.generator)
            flat = flat[drawn.to(flat.device)]
        self.samples.append(flat)
