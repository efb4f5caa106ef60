"""A linear layer computed in integers, as an int8 kernel does it.

With x = Sx·(qx − Zx) and w = Sw·(qw − Zw), n inputs (Jacob et al. 2018,
arXiv:1712.05877, equation 7):

    y_o = Sx·Sw·( Σ qx·qw − Zw·Σ qx − Zx·Σ qw + n·Zx·Zw ) + b_o

All sums are integers. Σ qw, n·Zx·Zw and the bias (in steps of Sx·Sw) don't depend on
the input: they are computed once. Only the last multiplication is in floats.
"""

import torch

from .mapping import AffineMapping


class IntegerLinear:
    """A linear layer in integers.

    Args:
        weight: float32 (out, in). bias: float32 (out,).
        input_mapping: with one scale. weight_mapping: with one scale, or one a row.

    Attributes:
        codes: int32 (out, in), the weight's.
        step: float32 (out,) or (1,): Sx·Sw.
        constant: int64 (out,): −Zx·Σ qw + n·Zx·Zw + round(b / (Sx·Sw)).
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        input_mapping: AffineMapping,
        weight_mapping: AffineMapping,
    ):
        x, w = input_mapping, weight_mapping
        rows, inputs = weight.shape
        # A scale that differs within a row couldn't be moved out of the sum.
        assert x.scale.numel() == 1 and w.scale.shape in ((1, 1), (rows, 1))
        self.input_mapping, self.codes = x, w.quantize(weight)
        self.step = x.scale * w.scale.flatten()
        x_zero, self.zero_point = (m.zero_point.long().flatten() for m in (x, w))
        sums = self.codes.long().sum(1)
        self.constant = inputs * x_zero * self.zero_point - x_zero * sums
        self.constant += torch.round(bias / self.step).long()

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """int32 codes (batch, in) -> int64 sums (batch, out), without any float.

        An int8 kernel has 32 bits for a sum: enough for 2^15 products of 8-bit codes.
        """
        products = codes.long() @ self.codes.long().T  # (batch, out)
        input_sums = codes.long().sum(1, keepdim=True)  # (batch, 1)
        return products - input_sums * self.zero_point + self.constant

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (batch, in) -> float32 (batch, out)."""
        sums = self.accumulate(self.input_mapping.quantize(x))
        return sums.float() * self.step
