"""Affine quantization of weights: small whole numbers, with a scale and zero a group.

w ≈ s·(q − z) with q = clip(round(w/s) + z, 0, 2^b − 1) (Jacob et al. 2018,
arXiv:1712.05877, equation 1; Nagel et al. 2021, arXiv:2106.08295, equations 4–7).
Weights of one row that stand next to each other share s and z: a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..core.errors import QuantizationError

BITS = (2, 3, 4, 5, 6, 7, 8)
_SMALLEST, _LARGEST = 2.0**-24, 65504.0  # of float16, in which scales are stored


@dataclass(frozen=True)
class Scheme:
    """How weights become whole numbers.

    Attributes:
        bits: of a weight.
        group: neighbours in a row that share scale and zero; None: the whole row.
        symmetric: zero in the middle of the grid, and as far up as down.
        act_order: GPTQ only: the columns with the largest inputs first.
        damping: GPTQ only: share of the Hessian's mean diagonal that is added to it.
    """

    bits: int = 4
    group: int | None = 64
    symmetric: bool = False
    act_order: bool = False
    damping: float = 0.01

    def __post_init__(self):
        if self.bits not in BITS:
            raise QuantizationError(f"bits={self.bits}: use one of {BITS}.")
        if self.group is not None and self.group < 1:
            raise QuantizationError(f"group={self.group}: use 32, 64, 128 or None.")
        if not 0 < self.damping < 1:
            raise QuantizationError(f"damping={self.damping}: use about 0.01.")

    @property
    def top(self) -> int:
        """The largest whole number."""
        return 2**self.bits - 1

    def __str__(self) -> str:
        parts = [f"{self.bits} bits", f"group {self.group or 'row'}"]
        parts += ["symmetric"] * self.symmetric + ["act-order"] * self.act_order
        return ", ".join(parts)


@dataclass(frozen=True)
class Quantized:
    """A weight matrix in whole numbers.

    Attributes:
        codes: uint8 (out, in).
        scales: float16 (out, groups).
        zeros: uint8 (out, groups).
        groups: int32 (in,), the group of every column.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    groups: torch.Tensor
    bits: int

    def dequantize(self) -> torch.Tensor:
        """float32 (out, in): s·(q − z)."""
        scales = over_columns(self.scales.float(), self.groups)
        zeros = over_columns(self.zeros.float(), self.groups)
        return scales * (self.codes - zeros)

    def rows(self, start: int, stop: int) -> "Quantized":
        """Some of the rows, as a matrix of its own."""
        own = {name: getattr(self, name)[start:stop].clone()
               for name in ("codes", "scales", "zeros")}  # fmt: skip
        return replace(self, **own, groups=self.groups.clone())

    def to(self, device) -> "Quantized":
        moved = {name: getattr(self, name).to(device)
                 for name in ("codes", "scales", "zeros", "groups")}  # fmt: skip
        return replace(self, **moved)


def grid(w: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero for the last dimension: the range from min to max, with 0 in it.

    s = (max − min) / (2^b − 1), z = round(−min / s); symmetric: min = −max and
    z = 2^(b−1). Zero is exactly representable; the scale is rounded up to float16, as
    it will be stored, before anything is computed with it. No weight is farther than
    half a step from the grid: a symmetric one ends half a step below the largest.

    Args:
        w: float32 (…, n).

    Returns:
        float32 scales and zeros (…,).

    Raises:
        QuantizationError: the range is too wide for a float16 scale.
    """
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    if scheme.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = ((high - low) / scheme.top).clamp(min=_SMALLEST)
    if scale.numel() and float(scale.max()) >= _LARGEST:
        raise QuantizationError(
            f"These weights span {float((high - low).max()):.1e}: a scale of more than "
            f"{_LARGEST:g} can't be stored in 16 bits. Is this a layer's weight?"
        )
    scale = _up_to_half(scale)
    if scheme.symmetric:
        return scale, torch.full_like(scale, 2 ** (scheme.bits - 1))
    return scale, (-low / scale).round().clamp(0, scheme.top)


def _up_to_half(scale: torch.Tensor) -> torch.Tensor:
    """The next float16 that isn't smaller, as float32; for positive numbers."""
    half = scale.half()
    following = (half.view(torch.int16) + 1).view(torch.float16)  # one bit up
    return torch.where(half.float() < scale, following, half).float()


def to_codes(w, scale, zero, scheme: Scheme) -> torch.Tensor:
    """Whole numbers, still as floats: clip(round(w/s) + z, 0, 2^b − 1)."""
    return (torch.round(w / scale) + zero).clamp_(0, scheme.top)


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> Quantized:
    """Every weight to its nearest grid point, without looking at any data (RTN).

    Args:
        weight: (out, in).

    Raises:
        QuantizationError: no matrix, numbers that aren't finite, or fewer columns than
            a group has.
    """
    require_matrix(weight, scheme)
    w = weight.detach().float()
    groups = columns_to_groups(w.shape[1], scheme, w.device)
    grids = [grid(part, scheme) for part in w.split(scheme.group or w.shape[1], 1)]
    scales, zeros = (torch.stack(parts, 1) for parts in zip(*grids, strict=True))
    on = (over_columns(part, groups) for part in (scales, zeros))
    codes = to_codes(w, *on, scheme)
    return stored(codes, scales, zeros, groups, scheme)


def stored(codes, scales, zeros, groups, scheme: Scheme) -> Quantized:
    """Computed in floats -> kept in the types of a checkpoint."""
    return Quantized(
        codes.byte(), scales.half(), zeros.byte(), groups.int(), scheme.bits
    )


def columns_to_groups(columns: int, scheme: Scheme, device) -> torch.Tensor:
    """int64 (columns,): the group of every column."""
    return torch.arange(columns, device=device) // (scheme.group or columns)


def over_columns(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """What each group has (out, groups) -> what each column has (out, in)."""
    if groups.device.type == "cpu":  # where reading scattered places is slow
        width = int((groups == 0).sum())
        neighbours = torch.arange(len(groups), dtype=groups.dtype) // max(1, width)
        if torch.equal(groups, neighbours):
            return values.repeat_interleave(width, 1)[:, : len(groups)]
    return values.index_select(1, groups)


def require_matrix(weight: torch.Tensor, scheme: Scheme, name: str = "") -> None:
    """Raise a QuantizationError for what can't be quantized."""
    name = f"{name}: " if name else ""
    if weight.ndim != 2 or 0 in weight.shape:
        raise QuantizationError(
            f"{name}expected a matrix (out, in), got {tuple(weight.shape)}."
        )
    if scheme.group and weight.shape[1] < scheme.group:
        raise QuantizationError(
            f"{name}{weight.shape[1]} inputs are fewer than a group of {scheme.group}: "
            f"use a smaller group, or None for one scale a row."
        )
    if not torch.isfinite(torch.stack(weight.aminmax())).all():  # NaN, if there is any
        raise QuantizationError(
            f"{name}NaN or infinity among the weights. Load the model again; if they "
            "are still there, the file is damaged or its training has diverged."
        )


def sqnr(original: torch.Tensor, approximation: torch.Tensor) -> float:
    """Signal to quantization noise in decibels: 10·log10(Σw² / Σ(w − ŵ)²)."""
    signal = original.double().square().sum()
    noise = (original.double() - approximation.double()).square().sum()
    return float(10 * torch.log10(signal / noise.clamp(min=1e-300)))


def bits_a_weight(matrices: Sequence[Quantized]) -> float:
    """Bits a weight of these matrices, with their scales (16 bits) and zeros."""
    weights = sum(matrix.codes.numel() for matrix in matrices)
    extra = sum(matrix.scales.numel() * (16 + matrix.bits) for matrix in matrices)
    return (sum(m.codes.numel() * m.bits for m in matrices) + extra) / max(1, weights)
