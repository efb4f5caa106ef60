"""Calibration: which range of the activations gets the codes, and what is clipped.

A wide range clips nothing and rounds coarsely, a narrow one the other way round. All
methods look at numbers that calibration data gave, never at data that will be judged.
"""

from collections.abc import Callable

import numpy as np
import torch

from ..core.errors import QuantizationError
from .mapping import affine, extent

Range = tuple[float, float]
_BINS, _STEPS = 2048, 60


def min_max(x: torch.Tensor, bits: int = 8) -> Range:
    """Everything that was seen."""
    low, high = extent(x)
    return float(low), float(high)


def percentile(x: torch.Tensor, bits: int = 8, outside: float = 1e-4) -> Range:
    """All but a share at either end (each ``outside`` of the numbers).

    Raises:
        QuantizationError: a share that isn't from 0 to below a half.
    """
    if not 0 <= outside < 0.5:
        raise QuantizationError(f"outside={outside}: use a small share, such as 1e-4.")
    extent(x)
    ends = np.quantile(x.detach().cpu().numpy(), [outside, 1 - outside])
    return float(ends[0]), float(ends[1])


def least_squares(x: torch.Tensor, bits: int = 8) -> Range:
    """The range with the smallest mean squared error, among shrunken ones.

    Both ends are drawn in together, in sixty steps (Banner, Nahshan and Soudry 2019,
    arXiv:1810.05723, minimise the same error with a formula instead).
    """
    low, high = extent(x)
    x, best, found = x.detach().flatten(), np.inf, (float(low), float(high))
    for step in range(_STEPS):
        share = 1 - step / _STEPS
        mapping = affine(low * share, high * share, bits)
        error = float((mapping.simulate(x.view_as(x)) - x).square().mean())
        if error < best:
            best, found = error, (float(low) * share, float(high) * share)
    return found


def entropy(x: torch.Tensor, bits: int = 8) -> Range:
    """The threshold that loses least information (Migacz 2017, TensorRT's).

    For each threshold T the histogram of |x| up to T, with all beyond put into its last
    bin, is compared (KL divergence) with itself in 2^(b−1) levels.

    Returns:
        (−T, T), or (0, T) when no number is negative.
    """
    low, _ = extent(x)
    counts, edges = np.histogram(x.detach().abs().cpu().numpy(), bins=_BINS)
    counts[0] = counts[1]  # a ReLU's zeros are exact anyway, and would outvote the rest
    levels, best, threshold = 2 ** (bits - 1), np.inf, float(edges[-1])
    beyond = counts[::-1].cumsum()[::-1]  # in a bin or after it
    for bins in range(max(levels, 16), _BINS + 1, 8):
        clipped = counts[:bins].astype(float)
        clipped[-1] += beyond[bins] if bins < _BINS else 0
        divergence = _kl(clipped, _in_levels(counts[:bins].astype(float), levels))
        if divergence < best:
            best, threshold = divergence, float(edges[bins])
    return (0.0 if float(low) >= 0 else -threshold), threshold


METHODS: dict[str, Callable[..., Range]] = {
    "min-max": min_max,
    "percentile": percentile,
    "mean squared error": least_squares,
    "entropy": entropy,
}


def _in_levels(counts: np.ndarray, levels: int) -> np.ndarray:
    """The histogram as a coarser one, each level spread over its non-empty bins."""
    level = (np.arange(len(counts)) * levels) // len(counts)
    filled = (counts > 0).astype(float)
    total = np.bincount(level, counts, levels)
    share = np.bincount(level, filled, levels)
    return filled * (total / np.maximum(share, 1))[level]


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    """Σ p·log(p/q) of two histograms; infinite where p is and q isn't."""
    p, q = p / max(p.sum(), 1), q / max(q.sum(), 1)
    here = p > 0
    if (q[here] == 0).any():
        q = np.where(here & (q == 0), 1e-9, q)
    return float((p[here] * np.log(p[here] / q[here])).sum())
