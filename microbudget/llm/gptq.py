"""GPTQ (Frantar et al. 2023, arXiv:2210.17323): round a column, adjust the others.

A layer's error is ‖WX − ŴX‖² (equation 1). The error's Hessian is H = 2·X·Xᵀ for every
row of W (section 3); here it is a mean over tokens, a factor that cancels. Columns are
rounded one after another; each column's error is compensated by the columns still to
come (equations 2 and 3).
"""

import math

import torch

from ..core.errors import QuantizationError
from ..quantization.affine import (
    QuantConfig,
    QuantizedTensor,
    as_stored,
    columns_to_groups,
    grid,
    require_matrix,
    searched_grid,
)

_BLOCK = 32  # columns that are finished before the others are updated (section 4)
_PANEL = 256  # rows of H that are computed at once


def hessian(inputs: torch.Tensor) -> torch.Tensor:
    """H = 2/n · Σ x·xᵀ over all tokens, float32 (in, in).

    Args:
        inputs: (…, in) what the layer receives.
    """
    x = inputs.reshape(-1, inputs.shape[-1]).float()  # (tokens, in)
    h = x.new_zeros(x.shape[1], x.shape[1])
    for i in range(0, len(h), _PANEL):  # H is symmetric: half of it is computed
        h[i : i + _PANEL, i:] = x[:, i : i + _PANEL].T @ x[:, i:]
    return (h.triu() + h.triu(1).T) * (2 / len(x))


def inverse_cholesky(h: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper triangular U with UᵀU = (H + λ·mean(diag H)·I)⁻¹ (section 4, step 3).

    Row j of U, from column j on, says how the error of column j is spread.

    Raises:
        QuantizationError: H isn't finite, or singular even with the damping.
    """
    eye = torch.eye(len(h), device=h.device)
    damped = h + (damping * h.diagonal().mean()) * eye
    # J reverses the order of rows or columns. J·H·J = L·Lᵀ, so H⁻¹ = UᵀU with the upper
    # triangular U = J·L⁻¹·J: one factorization and one triangular solve, no H⁻¹.
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
    if failed or not torch.isfinite(inverse).all():
        raise QuantizationError(
            f"The Hessian ({len(h)} × {len(h)}) is not finite, or singular even with "
            "damping: inputs overflow, or are too much alike. Use more calibration "
            "text and more varied text, float32, or a larger damping."
        )
    return inverse.flip(0, 1)


def gptq_layer(
    weight: torch.Tensor, h: torch.Tensor, config: QuantConfig
) -> QuantizedTensor:
    """Quantize a layer's weight so that its outputs, not its weights, change least.

    Args:
        weight: (out, in).
        h: its Hessian, float32 (in, in), on the device to compute on.

    Raises:
        QuantizationError: as ``require_matrix`` and ``inverse_cholesky``.
    """
    require_matrix(weight, config)
    outputs, columns = weight.shape
    width = config.group_size or columns
    w, h = _working_copies(weight, h)  # (in, out), (in, in)
    groups = columns_to_groups(columns, config, w.device)  # (in,)
    scales = w.new_empty(int(groups[-1]) + 1, outputs)  # (groups, out)
    zero_points = torch.empty_like(scales)

    def fit_grid(group: int) -> None:
        own = slice(group * width, (group + 1) * width)
        part = w[own].T  # (out, width)
        if config.search_scales:
            found = searched_grid(part, config, h.diagonal()[own])
        else:
            found = grid(part, config)
        scales[group], zero_points[group] = found

    order = torch.arange(columns, device=w.device)
    if config.act_order:
        # A group is adjacent columns of the matrix: its grid must be fitted before the
        # columns are sorted by the size of their inputs.
        for group in range(len(scales)):
            fit_grid(group)
        order = h.diagonal().argsort(descending=True, stable=True)
        w, h, groups = w[order], h[order][:, order], groups[order]

    upper = inverse_cholesky(h, config.damping)
    lower = upper.T.contiguous()
    codes = torch.empty_like(w)
    block = math.gcd(config.group_size or _BLOCK, _BLOCK)  # no block straddles groups
    for start in range(0, columns, block):
        now, stop = slice(start, start + block), start + block
        if start % width == 0 and not config.act_order:
            fit_grid(start // width)  # on weights that all earlier errors have updated
        codes[now], errors = _round_block(
            w[now],
            lower[now, now],
            scales[groups[now]],
            zero_points[groups[now]],
            config.q_max,
        )
        w[stop:].addmm_(upper[now, stop:].T, errors, alpha=-1)  # equation 4

    back = order.argsort()
    return as_stored(
        codes[back].T.contiguous(),  # (out, in)
        scales.T.contiguous(),  # (out, groups)
        zero_points.T.contiguous(),
        groups[back],
        config,
    )


def _working_copies(weight, h) -> tuple[torch.Tensor, torch.Tensor]:
    """W transposed, because its columns are then contiguous in memory, and H.

    Inputs that are always zero would make H singular. Their weights don't matter: they
    become zero, and their place on the diagonal an average one.
    """
    w = torch.empty(weight.shape[::-1], device=h.device)  # (in, out), float32
    w.copy_(weight.detach().T)
    h = h.clone()
    dead = h.diagonal() == 0
    w[dead] = 0
    h.diagonal()[dead] = h.diagonal()[~dead].mean()
    return w, h


@torch.inference_mode()  # it is thousands of tiny operations: each costs a little less
def _round_block(
    w: torch.Tensor,
    lower: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    q_max: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A block's codes q and errors e, both (columns, out): one column after the other.

    w_j ← w_j − Σ_{i<j} U_ij·e_i, then e_j = (w_j − s·(q_j − z)) / U_jj (equation 2).

    Args:
        w, scale, zero_point: (columns, out).
        lower: (columns, columns) the block's Uᵀ.
    """
    codes, errors = torch.empty_like(w), torch.empty_like(w)
    scale_over_u = scale / lower.diagonal()[:, None]
    for j in range(len(w)):
        w_j = w[j]  # (out,)
        if j:
            w_j = torch.addmv(w_j, errors[:j].T, lower[j, :j], alpha=-1)
        steps = w_j / scale[j]
        code, error = codes[j], errors[j]  # views: filled in place
        # Rounded before z is added, as round-to-nearest does it: w/s + z is itself
        # rounded, and may land exactly on .5 although w/s doesn't.
        torch.round(steps, out=code).add_(zero_point[j]).clamp_(0, q_max)
        # w/s − q + z is the error in steps of the grid; times s/U_jj it is e_j.
        torch.sub(steps, code, out=error).add_(zero_point[j]).mul_(scale_over_u[j])
    return codes, errors


def output_error(weight: torch.Tensor, rounded: torch.Tensor, h: torch.Tensor) -> float:
    """½·tr((W − Ŵ)·H·(W − Ŵ)ᵀ), the mean over tokens of ‖(W − Ŵ)·x‖².

    Equation 1, the objective of a layer, sums over tokens instead.
    """
    difference = (weight - rounded).double()
    return float(0.5 * torch.einsum("oi,ij,oj->", difference, h.double(), difference))
