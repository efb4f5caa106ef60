"""llama.cpp's simplest block formats, as its reference implementation computes them.

32 weights of a row share one float16 scale. Byte for byte what llama.cpp writes.
"""

import numpy as np

from ..core.errors import QuantizationError

BLOCK = 32
_LARGEST = 8 * 65504.0  # whose scale still is a float16


def q8_0(weights: np.ndarray) -> np.ndarray:
    """Q8_0: d = max|w| / 127, q = round(w / d); 34 bytes for 32 weights, 8.5 bits each.

    Args:
        weights: float32 (…, n), n a multiple of 32.

    Returns:
        uint8 (blocks, 34): the scale's two bytes, then 32 signed bytes.
    """
    w = _blocks(weights)  # (blocks, 32)
    d = np.abs(w).max(1, keepdims=True) / np.float32(127)
    q = _away_from_zero(w * _inverse(d)).astype(np.int8)
    return np.hstack([d.astype(np.float16).view(np.uint8), q.view(np.uint8)])


def q4_0(weights: np.ndarray) -> np.ndarray:
    """Q4_0: d = w* / −8 with w* the weight farthest from 0, q = ⌊w/d + 8.5⌋ in 0 … 15.

    Returns:
        uint8 (blocks, 18): the scale's two bytes, then 16 bytes; weight i in the low
        half of byte i, weight i + 16 in its high half. 4.5 bits a weight.
    """
    w = _blocks(weights)
    farthest = np.abs(w).argmax(1)[:, None]
    d = np.take_along_axis(w, farthest, 1) / np.float32(-8)
    q = np.minimum(15, np.trunc(w * _inverse(d) + np.float32(8.5))).astype(np.uint8)
    halves = q[:, :16] | (q[:, 16:] << 4)
    return np.hstack([d.astype(np.float16).view(np.uint8), halves])


def _blocks(weights: np.ndarray) -> np.ndarray:
    columns = weights.shape[-1] if weights.ndim else 0
    if not weights.size or not columns or columns % BLOCK:
        raise QuantizationError(
            f"Rows of {columns} weights aren't whole blocks of {BLOCK}."
        )
    if not np.abs(weights).max() < _LARGEST:
        raise QuantizationError("NaN or infinity among the weights, or nearly.")
    return np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, BLOCK)


def _inverse(d: np.ndarray) -> np.ndarray:
    """1/d, and 0 where a block is all zeros."""
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _away_from_zero(values: np.ndarray) -> np.ndarray:
    """C's roundf; numpy rounds halves to even."""
    return np.sign(values) * np.floor(np.abs(values) + np.float32(0.5))
