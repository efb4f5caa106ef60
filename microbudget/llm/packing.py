"""Integers of a few bits, packed into 32-bit words without gaps.

Little-endian: number i has bits b·i … b·i + b − 1 of the stream. For 2, 4 and 8 bits
that is 16, 8 and 4 numbers a word; 32 numbers of 3 bits fill 3 words, some of them
across two. It is the layout of GPTQ checkpoints.
"""

import math

import torch

from ..core.errors import QuantizationError


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack along the first dimension.

    Args:
        codes: integers 0 … 2^bits − 1, (n, …); n·bits must be a multiple of 32.

    Returns:
        int32 (n·bits/32, …).
    """
    n, period = len(codes), numbers_per_period(bits)
    assert n % period == 0, (n, bits)
    words = torch.zeros((n * bits // 32, *codes.shape[1:]), dtype=torch.int64,
                        device=codes.device)  # fmt: skip
    step = period * bits // 32  # words per period
    for phase in range(period):  # all numbers that start at the same bit of a word
        part = codes[phase::period].long()
        word, shift = divmod(phase * bits, 32)
        words[word::step] |= (part << shift) & 0xFFFFFFFF
        if shift + bits > 32:  # the upper bits stand in the next word
            words[word + 1 :: step] |= part >> (32 - shift)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse: int32 (m, …) -> uint8 (m·32/bits, …)."""
    if 32 % bits == 0:  # none across two words: all at once
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
        shifts = shifts.view(-1, *[1] * (words.ndim - 1))
        return ((words[:, None] >> shifts) & (2**bits - 1)).byte().flatten(0, 1)
    period, n = numbers_per_period(bits), len(words) * 32 // bits
    step = period * bits // 32
    codes = torch.empty((n, *words.shape[1:]), dtype=torch.uint8, device=words.device)
    for phase in range(period):
        word, shift = divmod(phase * bits, 32)
        part = words[word::step] >> shift  # copies of the sign bit are masked below
        if shift + bits > 32:
            low = 32 - shift
            part = (part & (2**low - 1)) | (words[word + 1 :: step] << low)
        codes[phase::period] = (part & (2**bits - 1)).byte()
    return codes


def numbers_per_period(bits: int) -> int:
    """So many numbers fill whole words; then the pattern of bits repeats."""
    return 32 // math.gcd(bits, 32)


def require_packable(inputs: int, outputs: int, bits: int, name: str = "") -> None:
    """Raise a QuantizationError unless rows and columns fill whole words."""
    name = f"{name}: " if name else ""
    if bits not in (2, 3, 4, 8):
        raise QuantizationError(f"{name}{bits} bits can't be packed: use 2, 3, 4 or 8.")
    step = numbers_per_period(bits)
    if inputs % step or outputs % step:
        raise QuantizationError(
            f"{name}{inputs} inputs and {outputs} outputs can't be packed in {bits} "
            f"bits: both must be multiples of {step}."
        )
