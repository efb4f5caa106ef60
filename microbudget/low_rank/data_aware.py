"""Low rank where it matters: the error of a layer's outputs on real inputs, not of W.

Inputs x are larger in some directions than in others. With their second moment
S = E[x xᵀ] = L Lᵀ the mean squared error of outputs is E‖(W − W')x‖² = ‖(W − W')L‖²_F,
so the best W' of rank k is the truncated SVD of W L, un-whitened: W' = U_k Σ_k V_kᵀ L⁻¹
(SVD-LLM, Wang et al. 2024, section 3.1; ASVD, Yuan et al. 2023, scales by a diagonal
instead). Since Σ_k V_kᵀ L⁻¹ = U_kᵀ W, it is also W' = U_k U_kᵀ W: outputs projected on
their own principal components (Zhang et al. 2016, section 3.1, for convolutions), and
no matrix has to be inverted. ``centred`` leaves the inputs' mean to the bias.

Outputs matter unequally, too. With the loss's gradients g for a layer's outputs and
their second moment G = R Rᵀ, the loss changes by E[(gᵀ(W − W')x)²] ≈ ‖Rᵀ(W − W')L‖²_F,
if g and x are taken as independent (as K-FAC does, Martens and Grosse 2015; FWSVD, Hsu
et al. 2022, weighs rows of W by a diagonal). The best W' then is R⁻ᵀ U_k U_kᵀ Rᵀ W, and
what two layers lose is in one unit: that of the loss.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ..core.errors import DataError
from ..core.modules import named_linear_layers, pick
from ..evaluation.moments import Moments
from .decomposition import Decomposition, finite_float64

# A fraction of the mean variance, added to every direction, so that those that no
# sample showed are kept last and not lost. Gradients, which are noisier, get ten times
# as much.
DAMPING = 1e-4


def data_aware_svd(
    weight: torch.Tensor,
    moments: Moments,
    gradients: Moments | None = None,
    *,
    centred: bool = False,
    damping: float = DAMPING,
) -> Decomposition:
    """Directions of a matrix W (out, in) by what they carry on real inputs.

    Args:
        moments: of the layer's inputs.
        gradients: moments of the loss's gradients for the layer's outputs: directions
            then count by how much they change the loss.
        centred: measure deviations from the inputs' mean, and let the bias (a new one,
            where there is none) keep what the mean contributes. Never a larger error.
        damping: a fraction of the inputs' mean variance; 0 for plain PCA.

    Raises:
        MicrobudgetError: NaN in the weight.
        DataError: moments of another layer, or of no samples.
    """
    w = weighted = finite_float64(weight)
    require_size(moments, w.shape[1], "inputs")
    if gradients is not None:
        require_size(gradients, w.shape[0], "outputs")
        g = gradients.matrix(damping=10 * damping).to(w.device)
        unit = g.diagonal().mean()  # gradients can be so small that squares underflow
        factor = torch.linalg.cholesky(g / unit) * unit.sqrt()  # R of G = R Rᵀ
        weighted = factor.T @ w  # Rᵀ W
    inputs = matrix_root(moments.matrix(centred, damping).to(w.device))  # L
    up, values, _ = torch.linalg.svd(weighted @ inputs, full_matrices=False)
    down = up.T @ weighted  # = Σ Vᵀ L⁻¹, without an inverse
    if gradients is not None:
        up = torch.linalg.solve_triangular(factor.T, up, upper=True)  # R⁻ᵀ U
    mean = moments.mean.to(w.device)
    means = (w @ mean, down @ mean) if centred else None
    return Decomposition(down=down, up=up, values=values, means=means)


def data_aware_decompose(
    model: nn.Module,
    moments: Mapping[str, Moments],
    gradients: Mapping[str, Moments] | None = None,
    *,
    centred: bool = False,
) -> dict[str, Decomposition]:
    """``data_aware_svd`` of every linear layer that moments were collected for."""
    layers, found = named_linear_layers(model), {}
    for name, own in moments.items():
        weight, g = pick(layers, name).weight, gradients and pick(gradients, name)
        found[name] = data_aware_svd(weight, own, g, centred=centred)
    return found


def matrix_root(s: torch.Tensor) -> torch.Tensor:
    """L with L Lᵀ = s: Cholesky's, or from eigenvectors where s is singular."""
    factor, failed = torch.linalg.cholesky_ex(s)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(s)
    return vectors * values.clamp(min=0).sqrt()


def output_error(
    weight: torch.Tensor, other: torch.Tensor, moments: Moments, centred: bool = False
) -> float:
    """√(E‖(W − W')x‖²), the root of the outputs' mean squared error, biases equal.

    Args:
        centred: about the inputs' mean, that is with the best bias.
    """
    gap = weight.detach().double() - other.detach().double()  # (out, in)
    squares = (gap @ moments.matrix(centred).to(gap.device)) * gap
    return float(squares.sum().clamp(min=0).sqrt())


def require_size(moments: Moments, size: int, side: str) -> None:
    if len(moments.total) != size:
        raise DataError(
            f"Moments of {len(moments.total)} numbers for a layer with {size} {side}: "
            "they were collected on another layer."
        )
