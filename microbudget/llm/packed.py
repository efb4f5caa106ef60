"""A linear layer whose weights are stored packed: small in memory and on disk.

The layout is GPTQ's: integers of b bits in 32-bit words without gaps, little-endian, so
that number i has the bits b·i … b·i + b − 1 of the stream. ``qweight`` is packed along
the inputs, ``qzeros`` along the outputs. Every call unpacks and dequantizes the whole
matrix in plain torch: this saves memory, not time. Fast kernels for the same layout are
GPTQModel's.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..core.errors import QuantizationError
from ..quantization.affine import QuantizedTensor

# Bits -> so many numbers fill whole words; then the pattern of bits repeats.
_PERIOD = {2: 16, 3: 32, 4: 8, 8: 4}


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack along the first dimension.

    Args:
        codes: uint8, 0 … 2^bits − 1, (n, …); n·bits must be a multiple of 32.

    Returns:
        int32 (n·bits/32, …).
    """
    period, step = _PERIOD[bits], _PERIOD[bits] * bits // 32  # numbers, words
    words = codes.new_zeros(len(codes) * bits // 32, *codes.shape[1:]).long()
    for phase in range(period):  # all numbers that start at the same bit of a word
        word, shift = divmod(phase * bits, 32)
        part = codes[phase::period].long() << shift
        words[word::step] |= part & 0xFFFFFFFF
        if shift + bits > 32:  # the upper bits stand in the next word
            words[word + 1 :: step] |= part >> 32
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse: int32 (m, …) -> uint8 (m·32/bits, …)."""
    if 32 % bits == 0:  # none across two words: every word at once, which is faster
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
        shifts = shifts.view(-1, *[1] * (words.ndim - 1))
        return ((words[:, None] >> shifts) & (2**bits - 1)).byte().flatten(0, 1)
    period, step = _PERIOD[bits], _PERIOD[bits] * bits // 32
    codes = words.new_empty(len(words) * 32 // bits, *words.shape[1:]).byte()
    for phase in range(period):
        word, shift = divmod(phase * bits, 32)
        part = words[word::step] >> shift  # copies of the sign bit are masked below
        if shift + bits > 32:
            low = 32 - shift
            part = (part & (2**low - 1)) | (words[word + 1 :: step] << low)
        codes[phase::period] = (part & (2**bits - 1)).byte()
    return codes


class PackedLinear(nn.Module):
    """y = Wx + b with W as packed integers.

    Attributes:
        qweight: int32 (in·bits/32, out).
        qzeros: int32 (groups, out·bits/32).
        scales: float16 (groups, out).
        g_idx: int32 (in,), the group of every input.
        bias: (out,) or None.
    """

    def __init__(self, bits: int, **tensors: torch.Tensor | None):
        """Args: tensors: all the attributes, by name."""
        super().__init__()
        self.bits = bits
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)  # integers can't be parameters

    @classmethod
    def pack(cls, weight: QuantizedTensor) -> "PackedLinear":
        """Raises a QuantizationError unless rows and columns fill whole words."""
        outputs, inputs = weight.codes.shape
        step = _PERIOD.get(weight.bits)
        if step is None or inputs % step or outputs % step:
            raise QuantizationError(
                f"{inputs} inputs and {outputs} outputs in {weight.bits} bits can't be "
                "packed: numbers (of 2, 3, 4 or 8 bits) must fill whole 32-bit words."
            )
        return cls(
            bits=weight.bits,
            qweight=pack(weight.codes.T.contiguous(), weight.bits),
            qzeros=pack(weight.zero_points, weight.bits).T.contiguous(),
            scales=weight.scales.T.contiguous(),
            g_idx=weight.groups.int(),
            bias=None,
        )

    def weight(self) -> QuantizedTensor:
        """Unpack."""
        codes = unpack(self.qweight, self.bits).T.contiguous()  # (out, in)
        zero_points = unpack(self.qzeros.T.contiguous(), self.bits)  # (out, groups)
        return QuantizedTensor(codes, self.scales.T, zero_points, self.g_idx, self.bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (…, in) -> (…, out)
        weight = self.weight().dequantize().to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))
