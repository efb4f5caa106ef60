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
        self.is_linear = isinstance(layer.layer, nn.Linear)
        # oneDNN's int8 operator is a convolution; a linear layer is one of 1 × 1.
        conv = _as_convolution(layer.layer) if self.is_linear else layer.layer
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise QuantizationError(
                f"The int8 kernel pads with zeros, by numbers: not {conv.padding!r}, "
                f"{conv.padding_mode!r}."
            )
        self.pads_same = isinstance(conv, SamePadConv2d)
        weight = layer.weight_mapping()
        codes = weight.quantize(layer.layer.weight.detach())
        scales = weight.scale.flatten().expand(conv.out_channels).contiguous()
        self.scale, self.zero_point = _grid(layer)
        self.output_grid = None if following is None else _grid(following)
        self.convolution = onednn.Int8Convolution(
            codes.reshape(conv.weight.shape), scales, conv,
            (self.scale, self.zero_point), conv.bias, self.output_grid,
        )  # fmt: skip

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
    # As a child of another module, the model itself may be replaced, too.
    parent = nn.ModuleDict({"model": copy.deepcopy(model).cpu().eval()})
    _convert_children_(parent)
    return parent["model"]


def _convert_children_(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        if isinstance(child, FakeQuantize):
            setattr(parent, name, Int8Layer(child))
        elif _is_plain_sequence(child):
            setattr(parent, name, _convert_sequence(child))
        else:
            _convert_children_(child)


def _convert_sequence(sequence: nn.Sequential) -> nn.Sequential:
    """Layers with nothing but activations between them are joined to chains."""
    modules = list(_flatten(sequence))
    converted = dict(enumerate(modules))
    layers = [i for i, module in enumerate(modules) if isinstance(module, FakeQuantize)]
    for i, following in zip(layers, [*layers[1:], None], strict=False):
        between = modules[i + 1 : following]
        if following is not None and _clips_alike(between, modules[following]):
            converted[i] = Int8Layer(modules[i], modules[following])
            for absorbed in range(i + 1, following):
                del converted[absorbed]
        else:
            converted[i] = Int8Layer(modules[i])
    for module in converted.values():
        _convert_children_(module)
    return nn.Sequential(*converted.values())


def _clips_alike(between: list[nn.Module], following: FakeQuantize) -> bool:
    """Whether clipping to the following layer's range does what stands between."""
    if not all(isinstance(module, _ABSORBED) for module in between):
        return False
    low, high = (float(end) for end in following.input_mapping().range)
    if any(isinstance(module, nn.ReLU6) for module in between):
        return low == 0 and high <= 6.001
    if any(isinstance(module, nn.ReLU) for module in between):
        return low == 0
    return True


def _flatten(sequence: nn.Sequential) -> Iterator[nn.Module]:
    for child in sequence:
        if _is_plain_sequence(child):
            yield from _flatten(child)
        else:
            yield child


def _is_plain_sequence(module: nn.Module) -> bool:
    """Whether a module calls its children one after the other, and does no more."""
    return isinstance(module, nn.Sequential) and (
        type(module).forward is nn.Sequential.forward
    )


def _grid(layer: FakeQuantize) -> onednn.Grid:
    """Scale and zero point of a layer's inputs."""
    mapping = layer.input_mapping()
    return float(mapping.scale), int(mapping.zero_point)


def _as_convolution(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta")
    conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None])
    conv.bias = linear.bias
    return conv
