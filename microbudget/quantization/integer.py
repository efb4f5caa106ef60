"""A linear layer computed in integers, as an int8 kernel does it.

With x = Sx·(qx − Zx) and w = Sw·(qw − Zw), n inputs (Jacob et al. 2018,
arXiv:1712.05877, equation 7):

    y_o = Sx·Sw·( Σ qx·qw − Zw·Σ qx − Zx·Σ qw + n·Zx·Zw ) + b_o

All sums are integers. Σ qw, n·Zx·Zw and the bias (in steps of Sx·Sw) don't depend on
the input: they are computed once. Only the last multiplication is in floats.
"""

import torch

from ..core.errors import QuantizationError
from .mapping import AffineMapping


class IntegerLinear:
    """A linear layer in integers.

    Args:
        weight: float32 (out, in). bias: float32 (out,), or None.
        input_mapping: with one scale. weight_mapping: with one scale, or one a row.

    Attributes:
        codes: int32 (out, in), the weight's.
        step: float32 (out,) or (1,): Sx·Sw.
        constant: int64 (out,): −Zx·Σ qw + n·Zx·Zw + round(b / (Sx·Sw)).

    Raises:
        QuantizationError: more scales than can be moved out of the sum; a sum could
            leave 32 bits, the size of an int8 kernel's accumulator.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        input_mapping: AffineMapping,
        weight_mapping: AffineMapping,
    ):
        x, w = input_mapping, weight_mapping
        rows, inputs = weight.shape
        if x.scale.numel() != 1 or w.scale.shape not in ((1, 1), (rows, 1)):
            raise QuantizationError(
                "Use one scale for the inputs, and one for the weight or one for each "
                "row: a scale that differs within a row can't be moved out of the sum."
            )
        self.input_mapping, self.codes = x, w.quantize(weight)
        self.step = x.scale * w.scale.flatten()
        x_zero, self.zero_point = (m.zero_point.long().flatten() for m in (x, w))
        largest_x = max(x.quant_max - int(x_zero), int(x_zero) - x.quant_min)
        largest_w = int((self.codes - w.zero_point).abs().max())
        if inputs * largest_x * largest_w >= 2**31:
            raise QuantizationError(
                f"{inputs} products may overflow a 32-bit accumulator."
            )
        sums = self.codes.long().sum(1)
        self.constant = inputs * x_zero * self.zero_point - x_zero * sums
        if bias is not None:
            self.constant = self.constant + torch.round(bias / self.step).long()

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """int32 codes (batch, in) -> int64 sums (batch, out), without any float."""
        products = codes.long() @ self.codes.long().T  # (batch, out)
        input_sums = codes.long().sum(1, keepdim=True)  # (batch, 1)
        return products - input_sums * self.zero_point + self.constant

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (batch, in) -> float32 (batch, out)."""
        sums = self.accumulate(self.input_mapping.quantize(x))
        return sums.float() * self.step
