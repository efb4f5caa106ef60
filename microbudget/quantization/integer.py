"""A linear layer computed in integers, as an int8 kernel does it.

With x = Sx·(qx − Zx) and w = Sw·(qw − Zw), n inputs (Jacob et al. 2018,
arXiv:1712.05877, equation 7):

    y_o = Sx·Sw·( Σ qx·qw − Zw·Σ qx − Zx·Σ qw + n·Zx·Zw ) + b_o

All sums are integers. Σ qw, n·Zx·Zw and the bias (in steps of Sx·Sw) don't depend on
the input: they are computed once. Only the last multiplication is in floats.
"""

from dataclasses import dataclass

import torch

from ..core.errors import QuantizationError
from .mapping import AffineMapping


@dataclass(frozen=True)
class IntegerLinear:
    """A linear layer in integers.

    Attributes:
        codes: int32 (out, in), the weight's.
        input_mapping, weight_mapping: how inputs and weights are quantized.
        constant: int64 (out,): −Zx·Σ qw + n·Zx·Zw + round(b / (Sx·Sw)).
    """

    codes: torch.Tensor
    input_mapping: AffineMapping
    weight_mapping: AffineMapping
    constant: torch.Tensor

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """int32 codes (batch, in) -> int64 sums (batch, out), without any float."""
        products = codes.long() @ self.codes.long().T  # (batch, out)
        zero_point = self.weight_mapping.zero_point.long().flatten()  # (1,) or (out,)
        input_sums = codes.long().sum(1, keepdim=True)  # (batch, 1)
        return products - input_sums * zero_point + self.constant

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (batch, in) -> float32 (batch, out)."""
        sums = self.accumulate(self.input_mapping.quantize(x))
        scale = self.input_mapping.scale * self.weight_mapping.scale.flatten()
        return sums.float() * scale


def integer_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    input_mapping: AffineMapping,
    weight_mapping: AffineMapping,
) -> IntegerLinear:
    """Prepare a linear layer.

    Args:
        weight: float32 (out, in). bias: float32 (out,), or None.
        input_mapping: with one scale. weight_mapping: with one scale, or one a row.

    Raises:
        QuantizationError: shapes don't fit; a sum could leave 32 bits, the size of an
            int8 kernel's accumulator.
    """
    x, w = input_mapping, weight_mapping
    if weight.ndim != 2 or x.scale.numel() != 1:
        raise QuantizationError("A matrix and a single input scale are needed.")
    rows, inputs = weight.shape
    if w.scale.numel() != 1 and w.scale.shape != (rows, 1):
        raise QuantizationError(
            f"{w.scale.numel()} weight scales for {rows} rows: use one, or one "
            "for each row (a scale within a row can't be moved out of the sum)."
        )
    codes = w.quantize(weight)
    x_zero, w_zero = x.zero_point.long().flatten(), w.zero_point.long().flatten()
    largest_x = max(x.quant_max - int(x_zero), int(x_zero) - x.quant_min)
    largest_w = int((codes - w.zero_point).abs().max())
    if inputs * largest_x * largest_w >= 2**31:
        raise QuantizationError(f"{inputs} products may overflow a 32-bit accumulator.")
    constant = inputs * x_zero * w_zero - x_zero * codes.long().sum(1)
    if bias is not None:
        constant = constant + torch.round(bias / (x.scale * w.scale.flatten())).long()
    return IntegerLinear(codes, x, w, constant)
