"""oneDNN's int8 convolution, as torch has it for CPUs.

The operators are those that ``torchao``'s PT2E lowers to; called directly they need no
compiler.
"""

import torch
from torch import nn


def available() -> bool:
    """Whether this torch has oneDNN's int8 convolutions, and they compute here."""
    try:
        x = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
        convolve(x, *pack(torch.ones(1, 1, 1, 1), None, _one_by_one(1), 1.0, 0))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def adds_exactly() -> bool:
    """Whether sums of products stay exact with 8-bit weights.

    Processors before VNNI add two products in 16 bits first, which overflows: weights
    then get 7 bits (PyTorch's ``reduce_range`` does so to the inputs).
    """
    conv = _one_by_one(64)
    weight = torch.full((1, 64, 1, 1), 127.0)
    x = torch.full((1, 64, 1, 1), 255, dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    found = convolve(x, *pack(weight, torch.ones(1), conv, 1.0, 0))
    return float(found.flatten()[0]) == 64 * 127 * 255.0


def _one_by_one(inputs: int) -> nn.Conv2d:
    """A 1 × 1 convolution that has no numbers: none are drawn."""
    return nn.Conv2d(inputs, 1, 1, device="meta")


def pack(codes, scales, conv: nn.Conv2d, x_scale, x_zero, bias=None, padding=None):
    """The weights in oneDNN's own layout, with all that the kernel wants to know."""
    padding = conv.padding if padding is None else padding
    shape = [list(conv.stride), list(padding), list(conv.dilation), conv.groups]
    scales = torch.ones(len(codes)) if scales is None else scales
    weight = torch.ops.onednn.qconv_prepack(
        codes.to(torch.int8), scales, x_scale, x_zero, *shape, None
    )
    zeros = torch.zeros(len(codes), dtype=torch.long)
    bias = None if bias is None else bias.detach().float()
    return weight, scales, zeros, bias, shape, x_scale, x_zero


def convolve(x, weight, scales, zeros, bias, shape, x_scale, x_zero, writes=None):
    scale, zero = writes or (1.0, 0)
    dtype = torch.uint8 if writes else torch.float32
    return torch.ops.onednn.qconv2d_pointwise.default(
        x, x_scale, x_zero, weight, scales, zeros, bias, *shape, scale, zero, dtype,
        "none", [], "",
    )  # fmt: skip
