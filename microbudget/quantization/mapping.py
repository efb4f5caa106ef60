"""From floats to whole numbers and back: affine and symmetric, at any granularity.

x ≈ S·(q − Z) with q = clip(round(x/S) + Z, lowest, highest) (Jacob et al. 2018,
arXiv:1712.05877, equations 1 and 12). ``affine.Scheme`` is the same for the weights of
language models, with the scales stored as checkpoints want them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.errors import QuantizationError

_TINY = 1e-12


@dataclass(frozen=True)
class Mapping:
    """A grid of whole numbers on the line of real ones.

    Attributes:
        scale: float32 S, a step; of a shape that broadcasts against what is mapped.
        zero: int32 Z, the code of 0.0, of the same shape.
        lowest, highest: of the codes.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    lowest: int
    highest: int

    @property
    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and the largest real number that isn't clipped."""
        return (
            self.scale * (self.lowest - self.zero),
            self.scale * (self.highest - self.zero),
        )

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Floats -> int32 codes: clip(round(x/S) + Z). Ties go to the even number."""
        codes = torch.round(x / self.scale) + self.zero
        return codes.clamp(self.lowest, self.highest).int()

    def dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes -> float32: S·(q − Z)."""
        return self.scale * (codes - self.zero)

    def simulate(self, x: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize; the gradient goes straight through the rounding.

        Straight-through estimator (Bengio, Léonard and Courville 2013,
        arXiv:1308.3432): 1 inside the range, 0 where ``x`` was clipped.
        """
        low, high = self.range
        clipped = torch.clamp(x, low, high)
        with torch.no_grad():  # the ends are codes: rounding can't leave the range
            rounded = (clipped / self.scale).round_().mul_(self.scale)
            if not clipped.requires_grad:
                return rounded
            rounded -= clipped
        return clipped + rounded


def affine(low: torch.Tensor, high: torch.Tensor, bits: int = 8) -> Mapping:
    """2^b codes from 0 for the range [low, high], widened so that 0.0 is in it.

    S = (high − low) / (2^b − 1): 256 codes have 255 steps between them. Z =
    round(−low / S) is a code, so that 0.0 (padding, ReLU) is represented exactly.

    Args:
        low, high: float, of one shape.

    Raises:
        QuantizationError: bits below 1 or above 16, a range that isn't finite or is
            the wrong way round.
    """
    low, high = _checked(low, high, bits)
    low, high = low.clamp(max=0), high.clamp(min=0)
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(min=_TINY)
    zero = torch.round(-low / scale).clamp(0, top).int()
    return Mapping(scale, zero, 0, top)


def symmetric(largest: torch.Tensor, bits: int = 8) -> Mapping:
    """Codes from −(2^(b−1) − 1) to 2^(b−1) − 1 for [−largest, largest]; Z = 0.

    One code is given up, so that −x is always the code −q.

    Raises:
        QuantizationError: as ``affine``; bits below 2.
    """
    largest, _ = _checked(largest, largest, bits)
    if bits < 2:
        raise QuantizationError(f"bits={bits}: a sign and a number need two.")
    top = 2 ** (bits - 1) - 1
    scale = (largest.abs() / top).clamp(min=_TINY)
    return Mapping(scale, torch.zeros_like(scale, dtype=torch.int32), -top, top)


def extent(
    x: torch.Tensor, keep: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest of ``x`` over all dimensions but those to keep.

    ``keep=()``: one range for the tensor; ``keep=(0,)``: one a channel (row, filter);
    groups of n weights in a row: ``extent(grouped(w, n), keep=(0, 1))``.

    Returns:
        Two tensors that broadcast against ``x``.

    Raises:
        QuantizationError: an empty tensor, or NaN or infinity in it.
    """
    if x.numel() == 0:
        raise QuantizationError("There is nothing to quantize: the tensor is empty.")
    if not torch.isfinite(x).all():
        raise QuantizationError(
            "NaN or infinity among the numbers: a range can't be made of them. Look at "
            "what computed them."
        )
    over = [d for d in range(x.ndim) if d not in keep]
    if not over:
        return x, x
    return x.amin(over, keepdim=True), x.amax(over, keepdim=True)


def of_weight(
    w: torch.Tensor, bits: int = 8, keep: Sequence[int] = (0,), affinely: bool = False
) -> Mapping:
    """The mapping for a weight from its own extent; by default symmetric, a channel."""
    low, high = extent(w.detach(), keep)
    if affinely:
        return affine(low, high, bits)
    return symmetric(torch.maximum(high, -low), bits)


def grouped(w: torch.Tensor, group: int) -> torch.Tensor:
    """View (out, in) -> (out, in / group, group).

    Raises:
        QuantizationError: no matrix, or rows that aren't a multiple of the group.
    """
    if w.ndim != 2 or group < 1 or w.shape[1] % group:
        raise QuantizationError(
            f"{tuple(w.shape)} can't be cut into groups of {group}: a matrix is needed "
            "whose rows are a multiple of the group."
        )
    return w.unflatten(1, (-1, group))


def _checked(low, high, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not 1 <= bits <= 16:
        raise QuantizationError(f"bits={bits}: use 1 to 16.")
    low, high = torch.as_tensor(low).float(), torch.as_tensor(high).float()
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise QuantizationError("A range with NaN or infinity can't be quantized.")
    if (low > high).any():
        raise QuantizationError("low is above high: the two are exchanged.")
    return low, high
