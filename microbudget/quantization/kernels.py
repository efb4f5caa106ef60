"""Simulated int8 becomes real: oneDNN's int8 kernels, as torch has them for CPUs.

The operators are those that ``torchao``'s PT2E road lowers to; called directly they
need no compiler. In a chain convolution → ReLU → convolution the first writes the codes
that the second reads: rounding to [0, high] is the ReLU, and no float is stored.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from ..core import onednn
from ..core.errors import QuantizationError
from ..models.mobilenet import SamePadConv2d
from .fake_quant import Simulated

_PASSED = (nn.ReLU, nn.ReLU6, nn.Identity, nn.Dropout)


class Int8Map(nn.Module):
    """A convolution (or linear map) on codes: uint8 in, uint8 or float32 out.

    Args:
        simulated: calibrated, 8-bit inputs, a scale a channel or one in all.
        following: the map that reads this one's output; None: floats come out.
    """

    def __init__(self, simulated: Simulated, following: Simulated | None):
        super().__init__()
        if simulated.dynamic or simulated.input_bits != 8 or simulated.bits > 8:
            raise QuantizationError(
                "Int8 kernels want calibrated 8-bit inputs and 8-bit weights at most."
            )
        inner = simulated.inner
        self.linear = isinstance(inner, nn.Linear)
        conv = _as_convolution(inner) if self.linear else inner
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise QuantizationError(
                f"The int8 kernel pads with zeros, by numbers: not {conv.padding!r}, "
                f"{conv.padding_mode!r}."
            )
        self.pads = isinstance(conv, SamePadConv2d)
        x = simulated.input_mapping()
        self.scale, self.zero = float(x.scale), int(x.zero)
        weight = simulated.weight_mapping()
        scales = weight.scale.flatten().expand(conv.out_channels).contiguous()
        codes = weight.quantize(inner.weight.detach()).reshape(conv.weight.shape)
        padding = (0, 0) if self.pads else conv.padding
        self.packed = onednn.pack(
            codes.float(), scales, conv, self.scale, self.zero, conv.bias, padding
        )
        self.writes = None
        if following is not None:
            y = following.input_mapping()
            self.writes = float(y.scale), int(y.zero)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """float32 -> uint8 codes."""
        codes = (x / self.scale).round_().add_(self.zero)
        return codes.clamp_(0, 255).to(torch.uint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = x if x.dtype == torch.uint8 else self.quantize(x)
        before = codes.shape[:-1]
        if self.linear:
            codes = codes.reshape(-1, codes.shape[-1])[:, :, None, None]
        elif self.pads:  # 'same' padding, with the code of 0.0
            height, width = codes.shape[-2:]
            codes = F.pad(codes, (width % 2, 1, height % 2, 1), value=self.zero)
        codes = codes.contiguous(memory_format=torch.channels_last)
        y = onednn.convolve(codes, *self.packed, writes=self.writes)
        return y.reshape(*before, -1) if self.linear else y


def convert(model: nn.Module) -> nn.Module:
    """A copy of a calibrated simulated model that computes in int8.

    Raises:
        QuantizationError: not calibrated, other than 8-bit inputs, no kernel here.
    """
    if not onednn.available():
        raise QuantizationError(
            "This torch has no int8 convolution for this processor (it comes with "
            "oneDNN, on x86). The simulated model has the same accuracy."
        )
    holder = nn.ModuleDict({"model": copy.deepcopy(model).cpu().eval()})
    _convert_children(holder)
    return holder["model"]


def _convert_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        if isinstance(child, Simulated):
            setattr(parent, name, Int8Map(child, None))
        elif _is_plain(child):
            setattr(parent, name, _chain(child))
        else:
            _convert_children(child)


def _chain(sequence: nn.Sequential) -> nn.Sequential:
    """Maps that follow each other, with nothing but activations between, joined."""
    flat, out, i = list(_flat(sequence)), [], 0
    while i < len(flat):
        module = flat[i]
        if not isinstance(module, Simulated):
            _convert_children(module)
            out.append(module)
            i += 1
            continue
        after = i + 1
        while after < len(flat) and isinstance(flat[after], _PASSED):
            after += 1
        follows = after < len(flat) and isinstance(flat[after], Simulated)
        if follows and _is_in_the_range(flat[i + 1 : after], flat[after]):
            out.append(Int8Map(module, flat[after]))
            i = after
        else:
            out.append(Int8Map(module, None))
            i += 1
    return nn.Sequential(*out)


def _is_in_the_range(between: list[nn.Module], following: Simulated) -> bool:
    """Whether clipping to the following map's range does what the activations do."""
    low, high = following.input_mapping().range
    if any(isinstance(m, nn.ReLU6) for m in between):
        return float(low) == 0 and float(high) <= 6.001
    if any(isinstance(m, nn.ReLU) for m in between):
        return float(low) == 0
    return True


def _flat(sequence: nn.Sequential):
    for child in sequence:
        if _is_plain(child):
            yield from _flat(child)
        else:
            yield child


def _is_plain(module: nn.Module) -> bool:
    """Whether a module calls its children one after the other, and does no more."""
    return isinstance(module, nn.Sequential) and (
        type(module).forward is nn.Sequential.forward
    )


def _as_convolution(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None])
    conv.bias = linear.bias
    return conv
