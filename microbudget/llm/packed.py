"""A linear layer whose weights are stored packed: small in memory and on disk.

The layout is GPTQ's: ``qweight`` packs along the inputs, ``qzeros`` along the outputs.
Every call unpacks and dequantizes the whole matrix in plain torch: this saves memory,
not time. Fast kernels for the same layout are GPTQModel's.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import record_function

from ..evaluation.profiling import DEQUANTIZE
from ..quantization.affine import QuantizedTensor
from .packing import pack, unpack


class PackedLinear(nn.Module):
    """y = Wx + b with W as packed integers.

    Attributes:
        qweight: int32 (in·bits/32, out).
        qzeros: int32 (groups, out·bits/32).
        scales: float16 (groups, out).
        g_idx: int32 (in,), the group of every input.
        bias: (out,) or None.
    """

    def __init__(
        self,
        qweight: torch.Tensor,
        qzeros: torch.Tensor,
        scales: torch.Tensor,
        g_idx: torch.Tensor,
        bits: int,
        bias: torch.Tensor | None = None,
    ):
        super().__init__()
        self.bits = bits
        self.in_features, self.out_features = len(g_idx), scales.shape[1]
        # Buffers, not parameters: integers can't have gradients.
        self.register_buffer("qweight", qweight)
        self.register_buffer("qzeros", qzeros)
        self.register_buffer("scales", scales)
        self.register_buffer("g_idx", g_idx)
        self.register_buffer("bias", bias)

    @classmethod
    def pack(cls, weight: QuantizedTensor) -> "PackedLinear":
        """Pack a quantized weight."""
        return cls(
            qweight=pack(weight.codes.T.contiguous(), weight.bits),
            qzeros=pack(weight.zero_points.contiguous(), weight.bits).T.contiguous(),
            scales=weight.scales.T.contiguous(),
            g_idx=weight.groups.int(),
            bits=weight.bits,
        )

    def weight(self) -> QuantizedTensor:
        """Unpack."""
        codes = unpack(self.qweight, self.bits).T.contiguous()  # (out, in)
        zero_points = unpack(self.qzeros.T.contiguous(), self.bits)  # (out, groups)
        return QuantizedTensor(codes, self.scales.T, zero_points, self.g_idx, self.bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (…, in) -> (…, out)
        with record_function(DEQUANTIZE):
            weight = self.weight().dequantize().to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}"
