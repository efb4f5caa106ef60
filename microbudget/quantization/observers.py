"""Calibration: which range of the activations gets the codes, and what is clipped.

A wide range clips nothing and rounds coarsely, a narrow one the other way round. Every
observer looks at values from calibration data, never at test data.
"""

from collections.abc import Callable

import numpy as np
import torch

from .mapping import affine_mapping, value_range

Range = tuple[float, float]
_BINS, _STEPS = 2048, 60


def min_max(x: torch.Tensor, bits: int = 8) -> Range:
    """Everything that was seen."""
    low, high = value_range(x)
    return float(low), float(high)


def percentile(x: torch.Tensor, bits: int = 8, outside: float = 1e-4) -> Range:
    """All but a small fraction (``outside``) of the values at either end."""
    value_range(x)  # refuses NaN and empty tensors, as the other observers do
    ends = np.quantile(x.detach().cpu().numpy(), [outside, 1 - outside])
    return float(ends[0]), float(ends[1])


def mse(x: torch.Tensor, bits: int = 8) -> Range:
    """The range with the smallest mean squared error, among shrunken ones.

    Both ends are drawn in together, in sixty steps (Banner, Nahshan and Soudry 2019,
    arXiv:1810.05723, minimise the same error with a formula instead).
    """
    low, high = value_range(x)
    x = x.detach().flatten()
    smallest_error, best = np.inf, (float(low), float(high))
    for step in range(_STEPS):
        fraction = 1 - step / _STEPS
        mapping = affine_mapping(low * fraction, high * fraction, bits)
        error = float((mapping.fake_quantize(x) - x).square().mean())
        if error < smallest_error:
            smallest_error = error
            best = float(low) * fraction, float(high) * fraction
    return best


def entropy(x: torch.Tensor, bits: int = 8) -> Range:
    """The threshold that loses least information (Migacz 2017, TensorRT's).

    For each threshold T the histogram of |x| up to T, with all beyond put into its last
    bin, is compared (KL divergence) with itself in 2^(b−1) levels.

    Returns:
        (−T, T), or (0, T) when no number is negative.
    """
    low, _ = value_range(x)
    counts, edges = np.histogram(x.detach().abs().cpu().numpy(), bins=_BINS)
    # A ReLU's many zeros are represented exactly anyway, and would outweigh the rest.
    counts[0] = counts[1]
    levels, smallest, threshold = 2 ** (bits - 1), np.inf, float(edges[-1])
    beyond = counts[::-1].cumsum()[::-1]  # in a bin or after it
    for bins in range(max(levels, 16), _BINS + 1, 8):
        clipped = counts[:bins].astype(float)
        clipped[-1] += beyond[bins] if bins < _BINS else 0
        coarse = _in_levels(counts[:bins].astype(float), levels)
        divergence = _kl_divergence(clipped, coarse)
        if divergence < smallest:
            smallest, threshold = divergence, float(edges[bins])
    return (0.0 if float(low) >= 0 else -threshold), threshold


OBSERVERS: dict[str, Callable[..., Range]] = {
    "min_max": min_max,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def _in_levels(counts: np.ndarray, levels: int) -> np.ndarray:
    """The histogram as a coarser one, each level spread over its non-empty bins."""
    level = (np.arange(len(counts)) * levels) // len(counts)
    filled = (counts > 0).astype(float)
    total = np.bincount(level, counts, levels)
    filled_bins = np.bincount(level, filled, levels)
    return filled * (total / np.maximum(filled_bins, 1))[level]


def _kl_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Σ p·log(p/q) of two histograms; a bin that only p fills counts as 1e-9 in q."""
    p, q = p / max(p.sum(), 1), q / max(q.sum(), 1)
    filled = p > 0
    q = np.where(filled & (q == 0), 1e-9, q)
    return float((p[filled] * np.log(p[filled] / q[filled])).sum())
