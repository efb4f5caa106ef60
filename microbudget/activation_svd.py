"""Low rank where it matters: the error of a map's outputs on real inputs, not of W.

Inputs x lean to some directions. With their second moment S = E[x xᵀ] = L Lᵀ the mean
squared error of outputs is E‖(W − W')x‖² = ‖(W − W')L‖²_F, so the best W' of rank k
is the truncated SVD of W L, un-whitened: W' = U_k Σ_k V_kᵀ L⁻¹ (SVD-LLM, Wang et al.
2024, section 3.1; ASVD, Yuan et al. 2023, scales by a diagonal instead). Since
Σ_k V_kᵀ L⁻¹ = U_kᵀ W, it is also W' = U_k U_kᵀ W: outputs projected on their own
principal components (Zhang et al. 2016, section 3.1, who did so to convolutions), and
no matrix has to be inverted. ``centred`` leaves the inputs' mean to the bias.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .errors import DataError, MicrobudgetError
from .factorization import Decomposition, checked, linears, pick

DAMPING = 1e-4  # of the mean variance, given to every direction: none counts nothing


@dataclass
class Moments:
    """Sums over samples x (in,): enough for their mean and second moment.

    Attributes:
        count: samples. total: float64 (in,). square: float64 (in, in), sum of x xᵀ.
    """

    count: int
    total: torch.Tensor
    square: torch.Tensor

    @classmethod
    def of(cls, size: int, device: str | torch.device = "cpu") -> "Moments":
        zeros = torch.zeros(size, size, dtype=torch.float64, device=device)
        return cls(0, zeros[0].clone(), zeros)

    def add(self, samples: torch.Tensor) -> "Moments":
        """Take in samples (n, in), of any n.

        Raises:
            DataError: of another size, or not finite.
        """
        if samples.ndim != 2 or samples.shape[1] != len(self.total):
            raise DataError(
                f"Samples of shape {tuple(samples.shape)} for moments of "
                f"{len(self.total)} numbers."
            )
        # a batch's sum in its own precision, batches' sums in float64
        samples = samples.detach().to(self.total.device)
        samples = samples if samples.dtype == torch.float64 else samples.float()
        square = samples.T @ samples
        if not torch.isfinite(square).all():
            raise DataError("The samples hold NaN or infinity, or overflow.")
        self.count += len(samples)
        self.total += samples.sum(0, dtype=torch.float64)
        self.square += square
        return self

    @property
    def mean(self) -> torch.Tensor:
        self._require()
        return self.total / self.count

    def matrix(self, centred: bool = False, damping: float = 0.0) -> torch.Tensor:
        """E[x xᵀ], or the covariance; plus ``damping`` · its mean diagonal on each.

        Raises:
            DataError: no samples yet.
        """
        self._require()
        found = self.square / self.count
        if centred:
            found = found - torch.outer(self.mean, self.mean)
        found = (found + found.T) / 2
        level = damping * found.diagonal().mean().clamp(min=0)
        return found + level * torch.eye(len(found), dtype=torch.float64).to(found)

    def _require(self) -> None:
        if self.count < 1:
            raise DataError("No samples were collected: run some data through first.")


def collect(
    model: nn.Module,
    batches: Iterable[tuple],
    names: Sequence[str] | None = None,
    *,
    counts: Callable[[tuple], torch.Tensor] | None = None,
) -> dict[str, Moments]:
    """Run ``model(*batch)`` over batches and sum up what comes into its linear maps.

    One batch's activations are in memory at a time, and in·in numbers for each map.

    Args:
        batches: tuples of the model's arguments.
        names: of linear maps; default: all of ``factorization.linears``.
        counts: batch -> bool (batch, tokens), which positions count: without it
            padding is taken for data. Maps with inputs of other shapes take all.

    Returns:
        name -> moments of that map's inputs.

    Raises:
        DataError: no batches, a map that no batch reached. MicrobudgetError: a name
            that isn't a linear map.
    """
    maps = linears(model)
    found = {}
    for name in names or maps:
        weight = pick(maps, name).weight
        found[name] = Moments.of(weight.shape[1], weight.device)
    wanted: list[torch.Tensor | None] = [None]

    def hook(moments: Moments):
        def note(_, arguments):
            x = arguments[0]  # (..., in)
            keep = wanted[0]
            if keep is not None and x.shape[:-1] == keep.shape:
                moments.add(x[keep.to(x.device)])
            else:
                moments.add(x.reshape(-1, x.shape[-1]))

        return note

    with _hooked({maps[name]: hook(moments) for name, moments in found.items()}):
        for batch in batches:
            wanted[0] = counts(batch).bool() if counts else None
            with torch.no_grad():
                model(*batch)
    silent = [name for name, moments in found.items() if not moments.count]
    if silent:
        raise DataError(f"Nothing came into {silent[0]}: give batches that reach it.")
    return found


def svd(
    weight: torch.Tensor,
    moments: Moments,
    *,
    centred: bool = False,
    damping: float = DAMPING,
) -> Decomposition:
    """Directions of a matrix (out, in) by what they carry on real inputs.

    Args:
        centred: measure deviations from the inputs' mean, and let the bias (a new one,
            where there is none) keep what the mean contributes. Never a larger error.
        damping: a share of the inputs' mean variance that is added to every direction,
            so that those no sample showed are kept last and not lost.

    Raises:
        MicrobudgetError: no matrix, NaN, damping that is negative.
        DataError: moments of another size, fewer samples than inputs without damping.
    """
    matrix = checked(weight)
    if len(moments.total) != matrix.shape[1]:
        raise DataError(
            f"Moments of {len(moments.total)} numbers for a map with "
            f"{matrix.shape[1]} inputs: they were collected on another map."
        )
    if not damping >= 0:
        raise MicrobudgetError(f"damping={damping}: it must not be negative.")
    if moments.count < matrix.shape[1] and damping == 0:
        raise DataError(
            f"{moments.count} samples can't show {matrix.shape[1]} directions: take "
            "more, or give damping (such as 1e-4)."
        )
    s = moments.matrix(centred, damping).to(matrix.device)
    u, values, _ = torch.linalg.svd(matrix @ root(s), full_matrices=False)
    down = u.T @ matrix  # = Σ Vᵀ L⁻¹, without an inverse
    centre = matrix @ moments.mean.to(matrix.device) if centred else None
    return Decomposition(down=down, up=u, values=values, centre=centre)


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
    *,
    centred: bool = False,
    damping: float = DAMPING,
) -> dict[str, Decomposition]:
    """``svd`` of every linear map that moments were collected for.

    Raises:
        MicrobudgetError, DataError: as ``svd``; a name that isn't a linear map.
    """
    maps = linears(model)
    return {
        name: svd(pick(maps, name).weight, own, centred=centred, damping=damping)
        for name, own in moments.items()
    }


def output_error(weight: torch.Tensor, other: torch.Tensor, moments: Moments) -> float:
    """√(E‖(W − W')x‖²), the root of the outputs' mean squared error, biases equal."""
    gap = checked(weight) - checked(other)
    return float(
        ((gap @ moments.matrix().to(gap.device)) * gap).sum().clamp(min=0).sqrt()
    )


@contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable]):
    handles = [m.register_forward_pre_hook(hook) for m, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
