"""GPTQ (Frantar et al. 2023, arXiv:2210.17323): round a column, mend the others.

A layer's error is ‖WX − ŴX‖² (equation 1). Its Hessian for every row of W is
H = 2·X·Xᵀ (section 3), the same for all rows. Columns are rounded one after another;
what a column loses is made up for by those still to come (equations 2 and 3).
"""

import math

import torch

from ..errors import QuantizationError
from .affine import (
    Quantized,
    Scheme,
    columns_to_groups,
    grid,
    require_matrix,
    stored,
)

_BLOCK = (
    32  # columns that are finished before the others hear of it (section 4, step 2)
)
_PANEL = 256
_Grid = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
_DAMP_TRIES = 4


def hessian(inputs: torch.Tensor) -> torch.Tensor:
    """H = 2/n · Σ x·xᵀ over all tokens, float32 (in, in).

    It is symmetric: only what stands right of and above the diagonal is computed.

    Args:
        inputs: (…, in) what the layer is given.

    Raises:
        QuantizationError: no inputs at all.
    """
    x = inputs.reshape(-1, inputs.shape[-1]).float()  # (tokens, in)
    if not len(x):
        raise QuantizationError("No calibration inputs have arrived at this layer.")
    h = x.new_zeros(x.shape[1], x.shape[1])
    for i in range(0, len(h), _PANEL):
        h[i : i + _PANEL, i:] = x[:, i : i + _PANEL].T @ x[:, i:]
    return (h.triu() + h.triu(1).T) * (2 / len(x))


def inverse_factor(h: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper triangular U with UᵀU = (H + λ·mean(diag H)·I)⁻¹ (section 4, step 3).

    Row j of U, from column j on, is what rounding column j must be spread with.

    Raises:
        QuantizationError: H isn't finite, or singular even with a thousandfold damping.
    """
    if not torch.isfinite(h).all():
        raise QuantizationError(
            "The Hessian holds NaN or infinity: some calibration text makes the model "
            "overflow. Load it in float32, or calibrate on other text."
        )
    eye = torch.eye(len(h), device=h.device)
    for attempt in range(_DAMP_TRIES):
        damped = h + (10**attempt * damping * h.diagonal().mean()) * eye
        # with rows and columns in reverse order, H = L·Lᵀ gives U = L⁻¹ in reverse
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
            if torch.isfinite(inverse).all():
                return inverse.flip(0, 1)
    raise QuantizationError(
        f"The Hessian ({len(h)} × {len(h)}) is singular, even damped: its inputs are "
        "(nearly) all zero. Use more and more varied calibration text, or a larger "
        "damping."
    )


def gptq(weight: torch.Tensor, h: torch.Tensor, scheme: Scheme) -> Quantized:
    """Quantize a matrix so that its outputs, not its weights, stay near.

    Args:
        weight: (out, in).
        h: its Hessian, float32 (in, in), on the weight's device.

    Raises:
        QuantizationError: as ``require_matrix`` and ``inverse_factor``; shapes that
            don't fit.
    """
    require_matrix(weight, scheme)
    columns = weight.shape[1]
    if h.shape != (columns, columns):
        raise QuantizationError(f"A Hessian {tuple(h.shape)} for {columns} inputs.")
    w, h = torch.empty(weight.shape[::-1], device=h.device), h.clone()  # (in, out)
    w.copy_(weight.detach().T)
    dead = h.diagonal() == 0  # inputs that are always zero: their weights don't matter
    w[dead] = 0
    alive = h.diagonal()[~dead]
    h.diagonal()[dead] = alive.mean() if len(alive) else 1.0
    groups = columns_to_groups(columns, scheme, w.device)
    order = torch.arange(columns, device=w.device)
    grids: list[_Grid] = []
    if scheme.act_order:  # grids as the weights are now: groups are not torn apart
        order = h.diagonal().argsort(descending=True, stable=True)
        for part in w.split(scheme.group or columns):
            grids.append(_grid_of(part, scheme))
        w, h = w[order], h[order][:, order]
    upper = inverse_factor(h, scheme.damping)
    lower = upper.T.contiguous()
    codes = torch.empty_like(w)
    group_of, spread = groups[order].tolist(), upper.diagonal().tolist()
    width = scheme.group or columns
    for start in range(0, columns, block := _block(scheme)):
        stop = min(start + block, columns)
        if not scheme.act_order and group_of[start] == len(grids):  # a group begins
            grids.append(_grid_of(w[start : start + width], scheme))
        errors = torch.empty_like(w[start:stop])
        lines = zip(w[start:stop], codes[start:stop], errors, strict=True)
        for j, (row, code, error) in enumerate(lines, start):  # each (out,)
            if j > start:  # what the block's columns before have left to this one
                known = errors[: j - start].T
                row = torch.addmv(row, known, lower[j, start:j], alpha=-1)
            scale, zero, low, high = grids[group_of[j]]
            q = (row / scale).round_().clamp_(low, high)
            torch.add(q, zero, out=code)
            torch.sub(row, q.mul_(scale), out=error).div_(spread[j])  # equation 2
        w[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)  # equation 4
    codes = codes[order.argsort()].T.contiguous()  # (out, in)
    scales, zeros = (torch.stack([g[part] for g in grids], 1) for part in (0, 1))
    return stored(codes, scales, zeros, groups, scheme)


def _grid_of(part: torch.Tensor, scheme: Scheme) -> _Grid:
    """Of a group (columns, out): scale, zero, and how far from zero codes may be."""
    scale, zero = grid(part.T, scheme)
    return scale, zero, -zero, scheme.top - zero


def output_error(weight: torch.Tensor, rounded: torch.Tensor, h: torch.Tensor) -> float:
    """½·tr((W − Ŵ)·H·(W − Ŵ)ᵀ): squared errors of the outputs, summed over them.

    It is the layer-wise objective of equation 1, a mean over tokens.
    """
    difference = (weight - rounded).double()
    return float(0.5 * torch.einsum("oi,ij,oj->", difference, h.double(), difference))


def _block(scheme: Scheme) -> int:
    """A group begins where a block does: its weights have then heard of all errors."""
    return math.gcd(scheme.group or _BLOCK, _BLOCK)
