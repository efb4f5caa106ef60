"""The affine mapping between real numbers and integer codes, at any granularity.

x ≈ S·(q − Z) with q = clip(round(x/S) + Z, quant_min, quant_max) (Jacob et al. 2018,
arXiv:1712.05877, equations 1 and 12). S is the scale; Z, the zero point, is the code of
0.0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.errors import QuantizationError

_SMALLEST_SCALE = 1e-12  # where all values are equal, their range has no width


@dataclass(frozen=True)
class AffineMapping:
    """A grid of evenly spaced real numbers, each with an integer code.

    Attributes:
        scale: float32 S, the step of the grid; broadcasts against what is quantized.
        zero_point: int32 Z, the code of 0.0, of the same shape.
        quant_min, quant_max: smallest and largest code.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    quant_min: int
    quant_max: int

    @property
    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and the largest real number that isn't clipped."""
        return (
            self.scale * (self.quant_min - self.zero_point),
            self.scale * (self.quant_max - self.zero_point),
        )

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Floats -> int32 codes: clip(round(x/S) + Z). Ties go to the even number."""
        codes = torch.round(x / self.scale) + self.zero_point
        return codes.clamp(self.quant_min, self.quant_max).int()

    def dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes -> float32: S·(q − Z)."""
        return self.scale * (codes - self.zero_point)

    def fake_quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize; the gradient goes straight through the rounding.

        Straight-through estimator (Bengio, Léonard and Courville 2013,
        arXiv:1308.3432): 1 inside the range, 0 where ``x`` was clipped.
        """
        clipped = torch.clamp(x, *self.range)
        # Both ends of the range have a code, so rounding can't leave it, and since
        # 0.0 has one, too, Z isn't needed: round(x/S)·S is on the grid.
        with torch.no_grad():
            rounded = (clipped / self.scale).round_().mul_(self.scale)
            if not clipped.requires_grad:
                return rounded
            rounding_error = rounded.sub_(clipped)
        # A constant is added, so the gradient is that of the clipping alone.
        return clipped + rounding_error


def affine_mapping(
    low: torch.Tensor,
    high: torch.Tensor,
    bits: int = 8,
    *,
    float16_scale: bool = False,
) -> AffineMapping:
    """2^b codes from 0 for the range [low, high], widened so that 0.0 is in it.

    S = (high − low) / (2^b − 1): 256 codes have 255 steps between them. Z =
    round(−low / S) is a code, so that 0.0 (padding, ReLU) is represented exactly.

    Args:
        low, high: float, of one shape.
        float16_scale: round the scale up to a float16, in which checkpoints store it,
            before Z is computed with it; up, so that the range stays covered.

    Raises:
        QuantizationError: bits below 1 or above 16, a range that isn't finite, is the
            wrong way round, or too wide for a float16 scale.
    """
    low, high = torch.as_tensor(low).float(), torch.as_tensor(high).float()
    is_range = (low <= high) & torch.isfinite(high - low)  # false for NaN, too
    if not (1 <= bits <= 16 and is_range.all()):
        raise QuantizationError(
            "A range must be finite, with low ≤ high, and have 1 to 16 bits."
        )
    low, high = low.clamp(max=0), high.clamp(min=0)
    quant_max = 2**bits - 1
    scale = ((high - low) / quant_max).clamp(min=_SMALLEST_SCALE)
    if float16_scale:
        scale = _round_up_to_float16(scale)
    zero_point = torch.round(-low / scale).clamp(0, quant_max).int()
    return AffineMapping(scale, zero_point, 0, quant_max)


def symmetric_mapping(largest: torch.Tensor, bits: int = 8) -> AffineMapping:
    """Codes from −(2^(b−1) − 1) to 2^(b−1) − 1 for [−largest, largest]; Z = 0.

    One code is given up, so that −x is always the code −q.

    Args:
        largest: float, not negative.
        bits: 2 or more: one is the sign's.
    """
    if bits < 2:
        raise QuantizationError(f"bits={bits}: a sign and a number need two.")
    quant_max = 2 ** (bits - 1) - 1
    scale = (torch.as_tensor(largest).float() / quant_max).clamp(min=_SMALLEST_SCALE)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return AffineMapping(scale, zero_point, -quant_max, quant_max)


def weight_mapping(
    weight: torch.Tensor,
    bits: int = 8,
    axes: Sequence[int] = (0,),
    symmetric: bool = True,
) -> AffineMapping:
    """The mapping of a weight from its own range, by default one for each channel."""
    low, high = value_range(weight.detach(), axes)
    if symmetric:
        return symmetric_mapping(torch.maximum(high, -low), bits)
    return affine_mapping(low, high, bits)


def value_range(
    x: torch.Tensor, axes: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value, for each index along ``axes``.

    ``axes=()``: one range for the tensor. ``axes=(0,)``: one for each channel (row,
    filter). Groups of n weights in a row:
    ``value_range(w.unflatten(1, (-1, n)), axes=(0, 1))``.

    Returns:
        Two tensors that broadcast against ``x``.

    Raises:
        QuantizationError: an empty tensor, or NaN or infinity in it.
    """
    if x.numel() == 0 or not torch.isfinite(x).all():
        raise QuantizationError(
            "The tensor to quantize is empty, or holds NaN or infinity, which have no "
            "range: check the layer or the data that it comes from."
        )
    reduced = [dim for dim in range(x.ndim) if dim not in axes]
    return x.amin(reduced, keepdim=True), x.amax(reduced, keepdim=True)


def _round_up_to_float16(scale: torch.Tensor) -> torch.Tensor:
    """The next float16 that isn't smaller, as float32; for positive numbers."""
    largest = torch.finfo(torch.float16).max
    if float(scale.max()) >= largest:
        raise QuantizationError(
            f"A scale of {float(scale.max()):.1e} can't be stored in 16 bits, whose "
            f"largest number is {largest:g}. Are these a layer's weights?"
        )
    half = scale.half()
    # As integers, the bits of positive floats count upwards: one more is the next one.
    following = (half.view(torch.int16) + 1).view(torch.float16)
    return torch.where(half.float() < scale, following, half).float()
