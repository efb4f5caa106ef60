"""Least squares for pruned layers: which inputs a layer can lose, and how to refit it.

A linear layer reads inputs h and gives W·h + b. Without some of them, the best that the
others can do is a least-squares problem whose data are means over examples: of h, of
h·hᵀ, and of what the layer should give. No gradient, no epoch: one pass, one solve.
"""

from collections.abc import Mapping, Sequence

import torch

from ..core.errors import TrainingError
from ..evaluation.moments import Moments

RIDGE = 1e-3  # of the mean variance: nothing relies on inputs that hardly vary


def least_squares(
    moments: Moments,
    inputs: int,
    ridge: float = RIDGE,
    prior: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ridge regression from x to t: W (outputs, inputs) and b (outputs,), float32.

    W = P + (C_tx - P·C_xx)·(C_xx + λI)⁻¹, with λ = ``ridge`` times the inputs' mean
    variance; the bias isn't shrunk. Hoerl and Kennard 1970.

    Args:
        moments: of examples (inputs + outputs,): x and t side by side.
        prior: P, (outputs, inputs), which W stays close to when there are few examples:
            zeros by default.
    """
    covariance = moments.matrix(centred=True).cpu()
    xx, tx = covariance[:inputs, :inputs], covariance[inputs:, :inputs]
    prior = torch.zeros_like(tx) if prior is None else prior.detach().cpu().double()
    rest = tx - prior @ xx
    weight = prior + torch.linalg.solve(_add_ridge(xx, ridge), rest.T).T
    mean = moments.mean.cpu()
    return weight.float(), (mean[inputs:] - weight @ mean[:inputs]).float()


def elimination_order(
    covariance: torch.Tensor,
    weight: torch.Tensor,
    group_size: int = 8,
    ridge: float = RIDGE,
    stop_after: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """In which order to remove inputs, the least important first, and the error then.

    Removing input j raises the squared error of the outputs by ‖w_j‖² / [C⁻¹]_jj
    once the others have made up for it as well as they can (Hassibi and Stork 1993,
    Optimal Brain Surgeon, equation 5; for whole columns Kurtic et al. 2023, ZipLM,
    section 3.1). The ``group_size`` cheapest are removed, the rest is updated, and so
    on.

    Args:
        covariance: of the inputs, (inputs, inputs).
        weight: (outputs, inputs).
        stop_after: so many are removed; the others follow in their own order.

    Returns:
        order: int64 (inputs,); the most important inputs stand last.
        errors: float64 (groups + 1,): the error, as a fraction of the outputs'
            variance, after 0, 1, … groups are removed; from 0 to 1, never falling.
    """
    inputs = len(covariance)
    covariance = _add_ridge(covariance.cpu().double(), ridge)
    w = weight.detach().cpu().double().clone()  # (outputs, inputs), updated below
    total = torch.einsum("oi,ij,oj->", w, covariance, w).clamp_min(1e-30)
    inverse = torch.linalg.inv(covariance)
    left, order, errors = torch.ones(inputs, dtype=torch.bool), [], [0.0]
    while int(left.sum()) > (0 if stop_after is None else inputs - stop_after):
        rest = left.nonzero().flatten()
        added_error = w[:, rest].pow(2).sum(0) / inverse.diagonal()[rest]
        removed = rest[added_error.argsort(stable=True)[:group_size]]
        block = torch.linalg.inv(inverse[removed][:, removed])  # (removed, removed)
        loss = torch.einsum("og,gh,oh->", w[:, removed], block, w[:, removed])
        errors.append(errors[-1] + max(0.0, float(loss / total)))
        update = block @ inverse[removed]  # (removed, inputs)
        # both in place; the columns of removed inputs become zero
        w -= w[:, removed] @ update
        inverse.addmm_(inverse[:, removed], update, alpha=-1)
        order.append(removed)
        left[removed] = False
    order.append(left.nonzero().flatten())
    return torch.cat(order), torch.tensor(errors, dtype=torch.float64)


def allocate_budget(
    errors: Mapping[str, Sequence[float]],
    costs: Mapping[str, Sequence[float]],
    budget: float,
    min_groups: Mapping[str, int],
) -> dict[str, int]:
    """How many groups each layer loses, so that the rest costs at most ``budget``.

    The least sum of errors among those on the lower convex hull: for a price λ each
    layer minimises error + λ·cost on its own (Everett 1963); λ is found by bisection.

    Args:
        errors: layer -> error after 0, 1, … groups are removed.
        costs: layer -> what the rest costs then (time, weights; any unit); falling.
        budget: fraction of the whole cost that may be spent.
        min_groups: layer -> groups that it keeps in any case.

    Raises:
        TrainingError: a budget below what the kept groups cost, or above 1.
    """
    total = sum(curve[0] for curve in costs.values())

    def choose(price: float) -> dict[str, int]:
        chosen = {}
        for name, curve in errors.items():
            options = range(max(1, len(curve) - min_groups[name]))
            values = [curve[i] + price * costs[name][i] for i in options]
            chosen[name] = min(options, key=values.__getitem__)
        return chosen

    def fraction(chosen: Mapping[str, int]) -> float:
        return sum(costs[name][removed] for name, removed in chosen.items()) / total

    smallest = fraction(choose(1e12 / total))
    if not smallest <= budget <= 1:
        raise TrainingError(
            f"budget={budget}: it must be a fraction of the cost between "
            f"{smallest:.2f}, which the groups that stay cost, and 1."
        )
    low, high = 0.0, 1.0 / total
    if fraction(choose(low)) <= budget:
        return choose(low)
    while fraction(choose(high)) > budget:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        too_expensive = fraction(choose(middle)) > budget
        low, high = (middle, high) if too_expensive else (low, middle)
    return choose(high)


def _add_ridge(covariance: torch.Tensor, ridge: float) -> torch.Tensor:
    """Covariance + λI, λ = ``ridge`` times the mean variance."""
    if not torch.isfinite(covariance).all():
        raise TrainingError("The covariance holds NaN or infinity.")
    level = ridge * covariance.diagonal().mean().clamp_min(1e-12)
    return covariance + level * torch.eye(len(covariance)).to(covariance)
