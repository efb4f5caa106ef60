"""GPTQ (Frantar et al. 2023, arXiv:2210.17323): round a column, mend the others.

A layer's error is ‖WX − ŴX‖² (equation 1). Its Hessian for every row of W is
H = 2·X·Xᵀ (section 3), the same for all rows. Columns are rounded one after another;
what a column loses is made up for by those still to come (equations 2 and 3).
"""

import math
from functools import cache, lru_cache

import torch

from ..core.errors import QuantizationError
from ..quantization.affine import (
    Quantized,
    Scheme,
    columns_to_groups,
    grid,
    require_matrix,
    stored,
)

# columns that are finished before the others hear of it (section 4, step 2)
_BLOCK = 32
_PANEL = 256
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
    width = scheme.group or columns
    grids: list[tuple[torch.Tensor, torch.Tensor]] = []  # scale and zero of a group
    if scheme.act_order:  # grids as the weights are now: groups are not torn apart
        order = h.diagonal().argsort(descending=True, stable=True)
        grids = [grid(part.T, scheme) for part in w.split(width)]
        scales, zeros = (torch.stack(parts) for parts in zip(*grids, strict=True))
        w, h = w[order], h[order][:, order]
    upper = inverse_factor(h, scheme.damping)
    lower = upper.T.contiguous()
    codes, group_of = torch.empty_like(w), groups[order]
    for start in range(0, columns, block := _block(scheme)):
        stop = min(start + block, columns)
        part = slice(start, stop)
        if scheme.act_order:  # every column has its group's grid, (columns, out)
            on = scales[group_of[part]], zeros[group_of[part]]
        else:
            if start % width == 0:  # a group begins
                grids.append(grid(w[start : start + width].T, scheme))
            on = tuple(x.expand(stop - start, -1) for x in grids[-1])
        codes[part], errors = _round_block(
            w[part], lower[part, part], upper.diagonal()[part], *on, scheme.top
        )
        w[stop:].addmm_(upper[part, stop:].T, errors, alpha=-1)  # equation 4
    codes = codes[order.argsort()].T.contiguous()  # (out, in)
    scales, zeros = (torch.stack(parts, 1) for parts in zip(*grids, strict=True))
    return stored(codes, scales, zeros, groups, scheme)


def _round_columns(
    w: torch.Tensor,
    lower: torch.Tensor,
    spread: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    top: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A block's codes and errors, both (columns, out): one column after the other.

    Args:
        w, scale, zero: (columns, out).
        lower: (columns, columns) what a column's error does to those after it.
        spread: (columns,) its diagonal.
    """
    codes, errors = torch.empty_like(w), torch.empty_like(w)
    lines = zip(w, codes, errors, scale, zero, scale / spread[:, None], strict=True)
    for j, (row, code, error, step, middle, spare) in enumerate(lines):  # each (out,)
        if j:  # what the columns before have left to this one
            row = torch.addmv(row, errors[:j].T, lower[j, :j], alpha=-1)
        place = row / step  # in steps from zero, but not whole
        # rounded before z is added: a large sum would fall on other ties
        torch.round(place, out=code).add_(middle).clamp_(0, top)
        torch.sub(place, code, out=error).add_(middle).mul_(spare)  # equation 2
    return codes, errors


def _round_block(w: torch.Tensor, *others) -> tuple[torch.Tensor, torch.Tensor]:
    """``_round_columns``; on CUDA recorded once for a shape, then replayed.

    It is hundreds of tiny kernels, and Python would start each of them anew.
    """
    if w.device.type != "cuda":
        with torch.inference_mode():  # many small calls: each costs a little less
            return _round_columns(w, *others)
    *others, top = others
    inputs, graph, outputs = _recording(w.shape, top, w.device)
    for mine, given in zip(inputs, (w, *others), strict=True):
        mine.copy_(given)
    graph.replay()
    return outputs  # the next replay overwrites them


@lru_cache(maxsize=8)  # a model has some three shapes
@torch.inference_mode(False)  # else only inference mode could fill the tensors again
@torch.no_grad()
def _recording(shape: torch.Size, top: int, device: torch.device) -> tuple:
    """A CUDA graph of ``_round_columns``, the tensors it reads and those it writes."""
    square = (shape[0], shape[0])
    shapes = (shape, square, shape[:1], shape, shape)
    inputs = [torch.ones(s, device=device) for s in shapes]
    side, graph = _side_stream(device), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # libraries get ready outside of the recording
        _round_columns(*inputs, top)
    torch.cuda.current_stream(device).wait_stream(side)
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=side):
        outputs = _round_columns(*inputs, top)
    return inputs, graph, outputs


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: libraries keep a workspace for every stream."""
    return torch.cuda.Stream(device)


def output_error(weight: torch.Tensor, rounded: torch.Tensor, h: torch.Tensor) -> float:
    """½·tr((W − Ŵ)·H·(W − Ŵ)ᵀ): squared errors of the outputs, summed over them.

    It is the layer-wise objective of equation 1, a mean over tokens.
    """
    difference = (weight - rounded).double()
    return float(0.5 * torch.einsum("oi,ij,oj->", difference, h.double(), difference))


def _block(scheme: Scheme) -> int:
    """A group begins where a block does: its weights have then heard of all errors."""
    return math.gcd(scheme.group or _BLOCK, _BLOCK)
