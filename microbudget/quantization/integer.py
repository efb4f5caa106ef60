"""A linear map computed in whole numbers, as an int8 kernel does it.

With x = Sx·(qx − Zx) and w = Sw·(qw − Zw), n inputs (Jacob et al. 2018,
arXiv:1712.05877, equation 7):

    y_o = Sx·Sw·( Σ qx·qw − Zw·Σ qx − Zx·Σ qw + n·Zx·Zw ) + b_o

All sums are whole. Σ qw, n·Zx·Zw and the bias (in steps of Sx·Sw) don't depend on the
input: they are computed once. Only the last multiplication is a float's.
"""

from dataclasses import dataclass

import torch

from ..core.errors import QuantizationError
from .mapping import Mapping


@dataclass(frozen=True)
class IntegerLinear:
    """A linear map in whole numbers.

    Attributes:
        weight: int32 codes (out, in); x, w: how inputs and weights are mapped.
        constant: int64 (out,): −Zx·Σ qw + n·Zx·Zw + round(b / (Sx·Sw)).
    """

    weight: torch.Tensor
    x: Mapping
    w: Mapping
    constant: torch.Tensor

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """int32 codes (batch, in) -> int64 sums (batch, out): no float is touched."""
        products = codes.long() @ self.weight.long().T
        zeros = self.w.zero.long().flatten()  # (1,) or (out,)
        return products - codes.long().sum(1, keepdim=True) * zeros + self.constant

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (batch, in) -> float32 (batch, out)."""
        sums = self.accumulate(self.x.quantize(x))
        return sums.float() * (self.x.scale * self.w.scale.flatten())


def linear(
    weight: torch.Tensor, bias: torch.Tensor | None, x: Mapping, w: Mapping
) -> IntegerLinear:
    """Prepare a linear map.

    Args:
        weight: float32 (out, in). bias: float32 (out,), or None.
        x: of the inputs, one scale in all. w: of the weights, one scale or one a row.

    Raises:
        QuantizationError: shapes don't fit; a sum could leave 32 bits, the size of an
            int8 kernel's accumulator.
    """
    if weight.ndim != 2 or x.scale.numel() != 1:
        raise QuantizationError("A matrix and a single input scale are needed.")
    rows, n = weight.shape
    if w.scale.numel() != 1 and w.scale.shape != (rows, 1):
        raise QuantizationError(
            f"{w.scale.numel()} weight scales for {rows} rows: use one, or one a row "
            "(a scale within a row can't be moved out of the sum)."
        )
    codes = w.quantize(weight)
    widest_x = max(abs(x.highest - int(x.zero)), abs(x.lowest - int(x.zero)))
    widest_w = int((codes - w.zero).abs().max())
    if n * widest_x * widest_w >= 2**31:
        raise QuantizationError(f"{n} products may overflow a 32-bit accumulator.")
    x_zero, w_zero = x.zero.long().flatten(), w.zero.long().flatten()
    constant = n * x_zero * w_zero - x_zero * codes.long().sum(1)
    if bias is not None:
        constant = constant + torch.round(bias / (x.scale * w.scale.flatten())).long()
    return IntegerLinear(codes, x, w, constant)
