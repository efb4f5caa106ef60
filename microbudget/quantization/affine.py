"""Affine quantization of weights: small integers, with a scale and zero point a group.

w ≈ s·(q − z) with q = clip(round(w/s) + z, 0, 2^b − 1) (Jacob et al. 2018,
arXiv:1712.05877, equation 1; Nagel et al. 2021, arXiv:2106.08295, equations 4–7).
Weights of one row that stand next to each other share s and z: a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.errors import QuantizationError
from .mapping import AffineMapping, affine_mapping

BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class QuantConfig:
    """How weights become small integers.

    Attributes:
        bits: of a weight.
        group_size: neighbours in a row that share a scale and a zero point; None: the
            whole row.
        symmetric: the zero point is the middle of the grid.
        act_order: GPTQ only: the columns with the largest inputs first.
        damping: GPTQ only: fraction of the Hessian's mean diagonal that is added to it.
        search_scales: GPTQ only: each group's range is shrunk as far as that lowers
            its error, weighted with the Hessian's diagonal.
    """

    bits: int = 4
    group_size: int | None = 64
    symmetric: bool = False
    act_order: bool = False
    damping: float = 0.01
    search_scales: bool = False

    def __post_init__(self):
        if self.bits not in BITS:
            raise QuantizationError(f"bits={self.bits}: use one of {BITS}.")
        if self.group_size is not None and self.group_size < 1:
            raise QuantizationError(
                f"group_size={self.group_size}: use 32, 64, 128 or None."
            )
        if not 0 < self.damping < 1:
            raise QuantizationError(f"damping={self.damping}: use about 0.01.")

    @property
    def q_max(self) -> int:
        """The largest code, 2^b − 1."""
        return 2**self.bits - 1

    def __str__(self) -> str:
        parts = [f"{self.bits} bits", f"group {self.group_size or 'row'}"]
        parts += ["symmetric"] * self.symmetric + ["act-order"] * self.act_order
        parts += ["searched scales"] * self.search_scales
        return ", ".join(parts)


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight matrix as integers.

    Attributes:
        codes: uint8 (out, in).
        scales: float16 (out, groups).
        zero_points: uint8 (out, groups).
        groups: int32 (in,), the group of every column.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    groups: torch.Tensor
    bits: int

    def dequantize(self) -> torch.Tensor:
        """float32 (out, in): s·(q − z)."""
        scales = expand_groups(self.scales.float(), self.groups)
        zero_points = expand_groups(self.zero_points.float(), self.groups)
        return scales * (self.codes - zero_points)

    def split_rows(self, sizes: Sequence[int]) -> list["QuantizedTensor"]:
        """Matrices of so many rows each, with memory of their own to save."""
        rows = [t.split(sizes) for t in (self.codes, self.scales, self.zero_points)]
        return [
            QuantizedTensor(*(t.clone() for t in (*part, self.groups)), self.bits)
            for part in zip(*rows, strict=True)
        ]


def grid(w: torch.Tensor, config: QuantConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point for the last dimension: the range from min to max, with 0.

    s = (max − min) / (2^b − 1), z = round(−min / s); symmetric: min = −max and
    z = 2^(b−1). Zero is exactly representable. The scale is rounded up to float16, as
    it will be stored, before anything is computed with it, so that no weight is farther
    than half a step from the grid. (A symmetric grid ends half a step below the
    largest weight.)

    Args:
        w: float32 (…, n).

    Returns:
        float32 scales and zero points (…,).

    Raises:
        QuantizationError: the range is too wide for a float16 scale.
    """
    low, high = w.amin(-1), w.amax(-1)
    if config.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    mapping = affine_mapping(low, high, config.bits, float16_scale=True)
    if config.symmetric:
        return mapping.scale, torch.full_like(mapping.scale, 2 ** (config.bits - 1))
    return mapping.scale, mapping.zero_point.float()


def searched_grid(
    w: torch.Tensor, config: QuantConfig, importance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid of a shrunk range, where that lowers Σ importance·(w − ŵ)².

    A smaller range cuts off the outermost weights and has finer steps for all others.
    Ten ranges are tried, from the whole one to 0.55 of it, for every row on its own.

    Args:
        w: float32 (out, n), a group of columns.
        importance: (n,) of each column, such as the Hessian's diagonal.

    Returns:
        float32 scales and zero points (out,).
    """
    best = None
    for shrink in torch.linspace(1, 0.55, 10).tolist():
        scale, zero_point = grid(w * shrink, config)
        mapping = AffineMapping(scale[:, None], zero_point[:, None], 0, config.q_max)
        error = (mapping.dequantize(mapping.quantize(w)) - w).square() @ importance
        if best is None:
            best = error, scale, zero_point
            continue
        smaller = error < best[0]
        best = tuple(
            torch.where(smaller, new, old)
            for new, old in zip((error, scale, zero_point), best, strict=True)
        )
    return best[1:]


def round_to_nearest(weight: torch.Tensor, config: QuantConfig) -> QuantizedTensor:
    """Every weight to its nearest grid point, without looking at any data (RTN).

    Args:
        weight: (out, in).

    Raises:
        QuantizationError: not a matrix, numbers that aren't finite, or fewer columns
            than a group has.
    """
    require_matrix(weight, config)
    w = weight.detach().float()
    groups = columns_to_groups(w.shape[1], config, w.device)
    parts = w.split(config.group_size or w.shape[1], dim=1)
    grids = [grid(part, config) for part in parts]  # each (out,), (out,)
    scales, zero_points = (torch.stack(found, 1) for found in zip(*grids, strict=True))
    scale, zero_point = (expand_groups(x, groups) for x in (scales, zero_points))
    codes = AffineMapping(scale, zero_point, 0, config.q_max).quantize(w)
    return as_stored(codes, scales, zero_points, groups, config)


def as_stored(codes, scales, zero_points, groups, config) -> QuantizedTensor:
    """What was computed in floats, in the types of a checkpoint."""
    return QuantizedTensor(
        codes.byte(), scales.half(), zero_points.byte(), groups.int(), config.bits
    )


def columns_to_groups(columns: int, config: QuantConfig, device) -> torch.Tensor:
    """int64 (columns,): the group of every column."""
    return torch.arange(columns, device=device) // (config.group_size or columns)


def expand_groups(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """From one value a group (out, groups) to one a column (out, in)."""
    if groups.device.type == "cpu":  # gathering columns is slow there: repeat instead
        width = int((groups == 0).sum())
        neighbours = torch.arange(len(groups), dtype=groups.dtype) // max(1, width)
        if torch.equal(groups, neighbours):
            return values.repeat_interleave(width, 1)[:, : len(groups)]
    return values.index_select(1, groups)


def require_matrix(weight: torch.Tensor, config: QuantConfig, name: str = "") -> None:
    """Raise a QuantizationError for what can't be quantized."""
    name = f"{name}: " if name else ""
    if weight.ndim != 2 or 0 in weight.shape:
        raise QuantizationError(
            f"{name}expected a matrix (out, in), got {tuple(weight.shape)}."
        )
    if config.group_size and weight.shape[1] < config.group_size:
        raise QuantizationError(
            f"{name}{weight.shape[1]} inputs are fewer than group_size="
            f"{config.group_size}: use a smaller one, or None for one scale a row."
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


def bits_per_weight(tensors: Sequence[QuantizedTensor]) -> float:
    """Bits for each weight, with scales (16 bits) and zero points (b bits) counted."""
    weights = sum(t.codes.numel() for t in tensors)
    extra = sum(t.scales.numel() * (16 + t.bits) for t in tensors)
    return (sum(t.codes.numel() * t.bits for t in tensors) + extra) / weights
