"""A linear map whose weights are stored packed: small in memory and on disk.

The layout is GPTQ's: ``qweight`` packs along the inputs, ``qzeros`` along the outputs.
Every call unpacks and dequantizes the whole matrix in plain torch: this saves memory,
not time. Fast kernels for the same layout are GPTQModel's.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import record_function

from ..core.errors import QuantizationError
from ..evaluation.profiling import DEQUANTIZE
from ..quantization.affine import Quantized
from .packing import fill, pack, unpack


class PackedLinear(nn.Module):
    """y = Wx + b with W in whole numbers.

    Attributes:
        qweight: int32 (in·bits/32, out).
        qzeros: int32 (groups, out·bits/32).
        scales: float16 (groups, out).
        g_idx: int32 (in,), the group of every input.
        bias: (out,) or None.
    """

    def __init__(self, inputs: int, outputs: int, bits: int, groups: int, bias=False):
        super().__init__()
        require_packable(inputs, outputs, bits)
        self.in_features, self.out_features, self.bits = inputs, outputs, bits
        buffers = {
            "qweight": torch.zeros(inputs * bits // 32, outputs, dtype=torch.int32),
            "qzeros": torch.zeros(groups, outputs * bits // 32, dtype=torch.int32),
            "scales": torch.zeros(groups, outputs, dtype=torch.float16),
            "g_idx": torch.zeros(inputs, dtype=torch.int32),
            "bias": torch.zeros(outputs, dtype=torch.float16) if bias else None,
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    @classmethod
    def of(cls, matrix: Quantized, bias: torch.Tensor | None = None) -> "PackedLinear":
        """Pack a matrix."""
        outputs, inputs = matrix.codes.shape
        groups = matrix.scales.shape[1]
        module = cls(inputs, outputs, matrix.bits, groups, bias is not None)
        module.qweight = pack(matrix.codes.T.contiguous(), matrix.bits)
        module.qzeros = pack(matrix.zeros.contiguous(), matrix.bits).T.contiguous()
        module.scales = matrix.scales.T.contiguous()
        module.g_idx = matrix.groups.int()
        module.bias = None if bias is None else bias.detach()
        return module

    def matrix(self) -> Quantized:
        """Unpack."""
        codes = unpack(self.qweight, self.bits).T.contiguous()
        zeros = unpack(self.qzeros.T.contiguous(), self.bits)
        return Quantized(codes, self.scales.T, zeros, self.g_idx, self.bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (…, in) -> (…, out)
        with record_function(DEQUANTIZE):
            weight = self.matrix().dequantize().to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}"


def pack_model(model: nn.Module, matrices: dict[str, Quantized]) -> nn.Module:
    """Replace the linear maps of these names by packed ones, in place.

    Raises:
        QuantizationError: a name that is no linear map of the model, or another shape.
    """
    for name, matrix in matrices.items():
        parent, _, last = name.rpartition(".")
        try:
            linear = model.get_submodule(name)
        except AttributeError as error:
            raise QuantizationError(f"The model has no {name!r}.") from error
        if (
            not isinstance(linear, nn.Linear)
            or linear.weight.shape != matrix.codes.shape
        ):
            raise QuantizationError(
                f"{name} is a {type(linear).__name__}, not a linear map of shape "
                f"{tuple(matrix.codes.shape)}."
            )
        setattr(model.get_submodule(parent), last, PackedLinear.of(matrix, linear.bias))
    return model


def require_packable(inputs: int, outputs: int, bits: int) -> None:
    """Raise a QuantizationError unless rows and columns fill whole words."""
    if bits not in (2, 3, 4, 8):
        raise QuantizationError(f"{bits} bits can't be packed: use 2, 3, 4 or 8.")
    step = fill(bits)
    if inputs % step or outputs % step:
        raise QuantizationError(
            f"A map from {inputs} to {outputs} can't be packed in {bits} bits: both "
            f"must be multiples of {step}."
        )
