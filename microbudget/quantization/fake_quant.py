"""Fake quantization: a model computes in floats, but with values rounded to a grid.

It shows which accuracy few bits will have; it isn't faster, since multiplying rounded
floats takes as long as multiplying others. The same modules serve

- post-training static quantization: the ranges of the inputs are calibrated once,
- quantization-aware training: the model is trained further (Jacob et al. 2018,
  section 3),
- dynamic quantization: the ranges are taken from each batch.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..core.errors import QuantizationError
from ..core.modules import names_of, replace_layer
from ..core.progress import bar
from ..models.mobilenet import SamePadConv2d
from .mapping import AffineMapping, affine_mapping, value_range, weight_mapping

# Exactly these types, no other subclasses: the weight of a subclass, as the one in
# nn.MultiheadAttention, may be read by other modules, which would no longer find it.
QUANTIZED_TYPES = (nn.Conv2d, nn.Linear, SamePadConv2d)


class FakeQuantize(nn.Module):
    """A convolution or linear layer whose weights and inputs are on grids.

    Attributes:
        layer: the layer itself, with trainable float weights.
        bits, input_bits: the weights' and the inputs' bits; 0: left in floats.
        per_channel: a scale for each output channel, else one for the whole weight.
        dynamic: the range of the inputs is taken from each batch.
        low, high: buffers, the range of the inputs; low > high before calibration.
    """

    def __init__(
        self,
        layer: nn.Module,
        bits: int,
        input_bits: int,
        per_channel: bool,
        dynamic: bool,
    ):
        super().__init__()
        self.layer, self.bits, self.input_bits = layer, bits, input_bits
        self.per_channel, self.dynamic = per_channel, dynamic
        device = layer.weight.device
        self.register_buffer("low", torch.tensor(0.0, device=device))
        self.register_buffer("high", torch.tensor(-1.0, device=device))
        self.calibration: _Calibration | None = None  # set while calibrating
        self.bias_is_corrected = False

    def weight_mapping(self) -> AffineMapping:
        axes = (0,) if self.per_channel else ()
        return weight_mapping(self.layer.weight, self.bits, axes)

    def input_mapping(self) -> AffineMapping:
        """The mapping of the calibrated range; a QuantizationError without one."""
        if self.low > self.high:
            raise QuantizationError(
                "The inputs' range isn't known: run calibrate_(model, …) on some data "
                "first, or use dynamic=True."
            )
        return affine_mapping(self.low, self.high, self.input_bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.calibration is not None:
            return self.calibration.observe(self, x)
        if self.input_bits:
            if self.dynamic:
                mapping = affine_mapping(*value_range(x.detach()), self.input_bits)
            else:
                mapping = self.input_mapping()
            x = mapping.fake_quantize(x)
        return self.with_rounded_weight(x) if self.bits else self.layer(x)

    def with_rounded_weight(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight_mapping().fake_quantize(self.layer.weight)
        # A call with another weight leaves the float weight in place, to be trained.
        return torch.func.functional_call(self.layer, {"weight": weight}, (x,))


def fake_quantize(
    model: nn.Module,
    bits: int | Mapping[str, int] = 8,
    input_bits: int = 8,
    *,
    per_channel: bool = True,
    dynamic: bool = False,
) -> nn.Module:
    """A copy of ``model`` with every convolution and linear layer fake-quantized.

    Fold batch-norms first (``models.vision.fold_batchnorm``): they would stay floats.

    Args:
        bits: of the weights; or a layer's name -> bits, for mixed precision.
        input_bits: of the activations that go into each layer; 0: floats.
        per_channel: a scale for every output channel, else one for each weight.
        dynamic: the inputs' ranges are taken from each batch, without calibration.

    Raises:
        QuantizationError: nothing to quantize, a name that isn't there.
    """
    model = copy.deepcopy(model)
    found = {n: m for n, m in model.named_modules() if type(m) in QUANTIZED_TYPES}
    if not found or fake_quantized_layers(model):
        raise QuantizationError(
            "Nothing to quantize: the model has no convolution or linear layer, or is "
            "fake-quantized already. Take the float model."
        )
    if not isinstance(bits, Mapping):
        bits = dict.fromkeys(found, bits)
    if mismatch := set(bits) ^ set(found):
        raise QuantizationError(
            "bits must name every layer, and no other: missing or unknown are "
            f"{sorted(mismatch)[:3]}."
        )
    for name, layer in found.items():
        new = FakeQuantize(layer, bits[name], input_bits, per_channel, dynamic)
        for own_name in names_of(model, layer):  # a layer may be used under several
            replace_layer(model, own_name, new)
    return model


def fake_quantized_layers(model: nn.Module) -> dict[str, FakeQuantize]:
    """The fake-quantized layers by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantize)}


@torch.no_grad()
def calibrate_(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    *,
    correct_bias: bool = False,
) -> nn.Module:
    """Find the inputs' ranges, from min to max, from calibration data, in place.

    Args:
        batches: inputs of the model; never test data.
        correct_bias: subtract from every bias what the rounded weights add to the mean
            of that output (Nagel et al. 2019, arXiv:1906.04721, section 4.2): a
            depthwise filter has nine weights, whose errors don't cancel. Layers without
            a bias are left alone. Only once for a model.

    Returns:
        The same model, in eval mode.

    Raises:
        QuantizationError: no data, a layer that no data reached.
    """
    layers = fake_quantized_layers(model)
    if correct_bias and any(layer.bias_is_corrected for layer in layers.values()):
        raise QuantizationError(
            "The biases are corrected already: start again from the float model."
        )
    model.eval()
    device = next(model.parameters()).device
    try:
        for layer in layers.values():
            layer.calibration = _Calibration(correct_bias)
        for batch in bar(batches, "calibration", unit="batch"):
            model(batch.to(device))
        for name, layer in layers.items():
            if layer.calibration.low > layer.calibration.high:
                raise QuantizationError(f"No calibration data reached {name}.")
        for layer in layers.values():
            layer.calibration.apply_(layer)
    finally:
        for layer in layers.values():
            layer.calibration = None
    return model


class _Calibration:
    """What calibration has seen of one layer.

    Attributes:
        low, high: smallest and largest input.
        shift, positions: sum of the outputs' shifts (channels,), and over how many.
    """

    def __init__(self, correct_bias: bool):
        self.correct_bias, self.positions, self.shift = correct_bias, 0, 0.0
        self.low, self.high = float("inf"), -float("inf")

    def observe(self, layer: FakeQuantize, x: torch.Tensor) -> torch.Tensor:
        """Compute in floats; note the inputs and how rounded weights shift outputs."""
        low, high = value_range(x)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        y = layer.layer(x)
        if self.correct_bias and layer.bits and layer.layer.bias is not None:
            channel_dim = -1 if isinstance(layer.layer, nn.Linear) else -3
            shift = layer.with_rounded_weight(x) - y
            shift = shift.movedim(channel_dim, 0).flatten(1)  # (channels, positions)
            self.shift = self.shift + shift.sum(1)
            self.positions += shift.shape[1]
        return y

    def apply_(self, layer: FakeQuantize) -> None:
        """Give the layer the range that was observed, and its corrected bias."""
        layer.low.fill_(self.low)
        layer.high.fill_(self.high)
        if self.positions:
            layer.layer.bias -= self.shift / self.positions
            layer.bias_is_corrected = True
