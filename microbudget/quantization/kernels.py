"""Fake-quantized becomes real: oneDNN's int8 kernels, as torch has them for CPUs.

A layer takes uint8 codes of its inputs, multiplies them by int8 codes of its weights
and adds up in int32 (``core.onednn``). What it gives is either float32, or already the
uint8 codes that the next layer wants. In a chain convolution → ReLU → convolution the
first one writes the codes that the second one reads: no activation is stored in floats,
a quarter of the bytes moves through memory, and clipping to the second one's range,
from 0 up, *is* the ReLU, so the ReLU disappears.
"""

import copy
from collections.abc import Iterator
from itertools import takewhile

import torch
from torch import nn
from torch.nn import functional as F

from ..core import onednn
from ..core.errors import QuantizationError
from ..models.mobilenet import SamePadConv2d
from .fake_quant import FakeQuantize

# What may stand between two layers of a chain: clipping to a range does its work.
_ABSORBED = (nn.ReLU, nn.ReLU6, nn.Identity, nn.Dropout)


class Int8Layer(nn.Module):
    """A convolution or linear layer on codes: uint8 in, uint8 or float32 out.

    Args:
        layer: calibrated, with 8-bit inputs.
        following: the layer that reads this one's output; None: floats come out.
    """

    def __init__(self, layer: FakeQuantize, following: FakeQuantize | None = None):
        super().__init__()
        if layer.dynamic or layer.input_bits != 8 or layer.bits > 8:
            raise QuantizationError(
                "Int8 kernels want calibrated 8-bit inputs and 8-bit weights at most."
            )
        inner = layer.layer
        self.is_linear = isinstance(inner, nn.Linear)
        self.pads_same = isinstance(inner, SamePadConv2d)
        mapping = layer.weight_mapping()
        codes = mapping.quantize(inner.weight.detach())
        if self.is_linear:  # oneDNN's int8 operator is a convolution: of 1 × 1 here
            codes, geometry = codes[:, :, None, None], onednn.POINTWISE
        else:
            assert inner.padding_mode == "zeros" and not isinstance(inner.padding, str)
            sides = (inner.stride, inner.padding, inner.dilation)
            geometry = (*map(list, sides), inner.groups)
        scales = mapping.scale.flatten().expand(len(codes)).contiguous()
        self.scale, self.zero_point = _grid(layer)
        self.output_grid = None if following is None else _grid(following)
        self.convolution = onednn.Int8Convolution(
            codes, scales, geometry, _grid(layer), inner.bias, self.output_grid
        )

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """float32 -> uint8 codes."""
        codes = (x / self.scale).round_().add_(self.zero_point)
        return codes.clamp_(0, 255).to(torch.uint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = x if x.dtype == torch.uint8 else self.quantize(x)
        leading = codes.shape[:-1]
        if self.is_linear:  # (…, in) -> (positions, in, 1, 1)
            codes = codes.reshape(-1, codes.shape[-1])[:, :, None, None]
        elif self.pads_same:  # the padding stands for 0.0, whose code is the zero point
            height, width = codes.shape[-2:]
            padding = (width % 2, 1, height % 2, 1)
            codes = F.pad(codes, padding, value=self.zero_point)
        codes = codes.contiguous(memory_format=torch.channels_last)
        y = self.convolution(codes)
        return y.reshape(*leading, -1) if self.is_linear else y


def to_int8(model: nn.Module) -> nn.Module:
    """A copy of a calibrated fake-quantized model that computes in int8.

    Raises:
        QuantizationError: not calibrated, other than 8-bit inputs, no kernel here.
    """
    if not onednn.available():
        raise QuantizationError(
            "This torch has no int8 convolution for this processor (it comes with "
            "oneDNN, on x86). The fake-quantized model has the same accuracy."
        )
    return _convert_(copy.deepcopy(model).cpu().eval())


def _convert_(module: nn.Module) -> nn.Module:
    """What takes the place of a module; its children are replaced in place."""
    if isinstance(module, FakeQuantize):
        return Int8Layer(module)
    if (modules := _flatten(module)) != [module]:
        return nn.Sequential(*_convert_chain(modules))
    for name, child in module.named_children():
        setattr(module, name, _convert_(child))
    return module


def _flatten(module: nn.Module) -> list[nn.Module]:
    """What is called one after the other; a subclass may do more than that."""
    if type(module).forward is not nn.Sequential.forward:
        return [module]
    return [inner for child in module for inner in _flatten(child)]


def _convert_chain(modules: list[nn.Module]) -> Iterator[nn.Module]:
    """Layers with nothing but activations between them hand on codes."""
    while modules:
        module, *modules = modules
        if not isinstance(module, FakeQuantize):
            yield _convert_(module)
            continue
        between = list(takewhile(lambda m: isinstance(m, _ABSORBED), modules))
        following = next(iter(modules[len(between) :]), None)
        if _clips_alike(between, following):
            yield Int8Layer(module, following)
            modules = modules[len(between) :]
        else:
            yield Int8Layer(module)


def _clips_alike(between: list[nn.Module], following: nn.Module | None) -> bool:
    """Whether clipping to the following layer's range does what stands between."""
    if not isinstance(following, FakeQuantize):
        return False
    low, high = (float(end) for end in following.input_mapping().range)
    has_relu6 = any(isinstance(module, nn.ReLU6) for module in between)
    has_relu = has_relu6 or any(isinstance(module, nn.ReLU) for module in between)
    return (low == 0 or not has_relu) and (high <= 6.001 or not has_relu6)


def _grid(layer: FakeQuantize) -> onednn.Grid:
    """Scale and zero point of a layer's inputs."""
    mapping = layer.input_mapping()
    return float(mapping.scale), int(mapping.zero_point)
