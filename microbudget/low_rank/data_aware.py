"""Low rank where it matters: the error of a map's outputs on real inputs, not of W.

Inputs x lean to some directions. With their second moment S = E[x xᵀ] = L Lᵀ the mean
squared error of outputs is E‖(W − W')x‖² = ‖(W − W')L‖²_F, so the best W' of rank k
is the truncated SVD of W L, un-whitened: W' = U_k Σ_k V_kᵀ L⁻¹ (SVD-LLM, Wang et al.
2024, section 3.1; ASVD, Yuan et al. 2023, scales by a diagonal instead). Since
Σ_k V_kᵀ L⁻¹ = U_kᵀ W, it is also W' = U_k U_kᵀ W: outputs projected on their own
principal components (Zhang et al. 2016, section 3.1, who did so to convolutions), and
no matrix has to be inverted. ``centred`` leaves the inputs' mean to the bias.

Outputs matter unequally, too. With the loss's gradients g for a map's outputs and their
second moment G = R Rᵀ, the loss moves by E[(gᵀ(W − W')x)²] ≈ ‖Rᵀ(W − W')L‖²_F, if g
and x are taken as independent (as K-FAC does, Martens and Grosse 2015; FWSVD, Hsu et
al. 2022, weighs rows of W by a diagonal). The best W' then is R⁻ᵀ U_k U_kᵀ Rᵀ W, and
what two maps lose is in one unit: that of the loss.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ..core.errors import DataError, MicrobudgetError
from ..core.modules import pick, plain_linear_layers
from ..evaluation.moments import Moments
from .factorize import Decomposition, checked

DAMPING = 1e-4  # of the mean variance, given to every direction: none counts nothing


def svd(
    weight: torch.Tensor,
    moments: Moments,
    gradients: Moments | None = None,
    *,
    centred: bool = False,
    damping: float = DAMPING,
) -> Decomposition:
    """Directions of a matrix (out, in) by what they carry on real inputs.

    Args:
        gradients: of the loss for the outputs: directions then count by what the loss
            feels of them.
        centred: measure deviations from the inputs' mean, and let the bias (a new one,
            where there is none) keep what the mean contributes. Never a larger error.
        damping: a share of the inputs' mean variance that is added to every direction,
            so that those no sample showed are kept last and not lost; likewise, ten
            times as much, to the gradients, which are noisier.

    Raises:
        MicrobudgetError: no matrix, NaN, damping that is negative.
        DataError: moments of another size, fewer samples than inputs without damping,
            gradients that are all zero.
    """
    matrix = checked(weight)
    sides = [(moments, matrix.shape[1], "inputs")]
    sides += [(gradients, matrix.shape[0], "outputs")] if gradients else []
    if not damping >= 0:
        raise MicrobudgetError(f"damping={damping}: it must not be negative.")
    for own, size, what in sides:
        if len(own.total) != size:
            raise DataError(
                f"Moments of {len(own.total)} numbers for a map with {size} {what}: "
                "they were collected on another map."
            )
        if own.count < size and damping == 0:
            raise DataError(
                f"{own.count} samples can't show {size} directions: take more, or "
                "give damping (such as 1e-4)."
            )
    felt = matrix  # Rᵀ W, or W
    if gradients:
        g = gradients.matrix(damping=10 * damping).to(matrix.device)
        if not float(g.trace()) > 0:
            raise DataError("All gradients are zero: the loss doesn't feel this map.")
        # in units of their mean, so that nothing is lost to rounding below
        r, failed = torch.linalg.cholesky_ex(g / g.diagonal().mean())
        if failed:
            raise DataError(
                "The loss doesn't feel some directions of the outputs at all: give "
                "damping (such as 1e-4)."
            )
        r = r * g.diagonal().mean().sqrt()
        felt = r.T @ matrix
    s = moments.matrix(centred, damping).to(matrix.device)
    up, values, _ = torch.linalg.svd(felt @ root(s), full_matrices=False)
    down = up.T @ felt  # = Σ Vᵀ L⁻¹, without an inverse
    if gradients:
        up = torch.linalg.solve_triangular(r.T, up, upper=True)
    means = None
    if centred:
        mean = moments.mean.to(matrix.device)
        means = matrix @ mean, down @ mean
    return Decomposition(down=down, up=up, values=values, means=means)


def root(s: torch.Tensor) -> torch.Tensor:
    """L with L Lᵀ = s: Cholesky's, or from eigenvectors where s is singular."""
    factor, failed = torch.linalg.cholesky_ex(s)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(s)
    return vectors * values.clamp(min=0).sqrt()


def decompose(
    model: nn.Module,
    moments: Mapping[str, Moments],
    gradients: Mapping[str, Moments] | None = None,
    *,
    centred: bool = False,
    damping: float = DAMPING,
) -> dict[str, Decomposition]:
    """``svd`` of every linear map that moments were collected for.

    Raises:
        MicrobudgetError, DataError: as ``svd``; a name that isn't a linear map, or that
            gradients are missing for.
    """
    maps, options = plain_linear_layers(model), {"centred": centred, "damping": damping}
    return {
        name: svd(
            pick(maps, name).weight,
            own,
            pick(gradients, name) if gradients else None,
            **options,
        )
        for name, own in moments.items()
    }


def output_error(
    weight: torch.Tensor, other: torch.Tensor, moments: Moments, centred: bool = False
) -> float:
    """√(E‖(W − W')x‖²), the root of the outputs' mean squared error, biases equal.

    Args:
        centred: about the inputs' mean, that is with the best bias.
    """
    gap = checked(weight) - checked(other)
    return float(
        ((gap @ moments.matrix(centred).to(gap.device)) * gap).sum().clamp(min=0).sqrt()
    )
