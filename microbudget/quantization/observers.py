"""Calibration: which range of the activations gets the codes, and what is clipped.

A wide range clips nothing and rounds coarsely, a narrow one the other way round. Every
observer looks at values from calibration data, never at test data.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.special import rel_entr

from .mapping import affine_mapping, value_range

Range = tuple[float, float]
_BINS, _STEPS = 2048, 60  # of entropy, of mse
_OUTSIDE = 1e-4  # fraction that percentile clips at either end


def min_max(x: torch.Tensor, bits: int = 8) -> Range:
    """Everything that was seen."""
    low, high = value_range(x)
    return float(low), float(high)


def percentile(x: torch.Tensor, bits: int = 8) -> Range:
    """All but the smallest and the largest ten-thousandth of the values."""
    value_range(x)  # refuses NaN and empty tensors, as the other observers do
    low, high = np.quantile(x.detach().cpu().numpy(), [_OUTSIDE, 1 - _OUTSIDE])
    return float(low), float(high)


def mse(x: torch.Tensor, bits: int = 8) -> Range:
    """The range with the smallest mean squared error, among narrowed ones.

    Both ends are drawn in together, in sixty steps (Banner, Nahshan and Soudry 2019,
    arXiv:1810.05723, minimise the same error with a formula instead).
    """
    low, high = value_range(x)
    x = x.detach().flatten()

    def error(fraction: float) -> float:
        mapping = affine_mapping(low * fraction, high * fraction, bits)
        return float((mapping.fake_quantize(x) - x).square().mean())

    best = min((1 - step / _STEPS for step in range(_STEPS)), key=error)
    return float(low) * best, float(high) * best


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
    levels = 2 ** (bits - 1)

    def divergence(bins: int) -> float:
        """Σ p·log(p/q); where only p has something, q counts as 1e-9."""
        p, q = counts[:bins].astype(float), _in_levels(counts[:bins], levels)
        p[-1] += counts[bins:].sum()
        p, q = p / max(p.sum(), 1), q / max(q.sum(), 1)
        return rel_entr(p, np.where(q == 0, 1e-9, q)).sum()

    threshold = float(edges[min(range(max(levels, 16), _BINS + 1, 8), key=divergence)])
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
