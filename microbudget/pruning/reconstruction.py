"""Least squares for pruned layers: which inputs a layer can lose, and how to refit it.

A linear layer reads inputs h and gives W·h + b. Without some of them, the best that the
others can do is a least-squares problem whose data are means over examples: of h, of
h·hᵀ, and of what the layer should give. No gradient, no epoch: one pass, one solve.
"""

from collections.abc import Mapping

import torch
from torch import nn

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
    covariance, mean = moments.matrix(centred=True).cpu(), moments.mean.cpu()
    xx, tx = covariance[:inputs, :inputs], covariance[inputs:, :inputs]
    prior = torch.zeros_like(tx) if prior is None else prior.detach().cpu().double()
    level = ridge * xx.diagonal().mean().clamp(min=1e-12)  # λ
    regularised = xx + level * torch.eye(inputs, dtype=torch.float64)
    weight = prior + torch.linalg.solve(regularised, (tx - prior @ xx).T).T
    return weight.float(), (mean[inputs:] - weight @ mean[:inputs]).float()


@torch.no_grad()
def refit_(layer: nn.Linear | nn.Conv2d, moments: Moments) -> None:
    """Fit a linear layer or 1×1 convolution anew, in place, close to what it was.

    Args:
        moments: of what the layer reads and what it should give, side by side.
    """
    prior = layer.weight.flatten(1)  # (outputs, inputs)
    weight, bias = least_squares(moments, prior.shape[1], prior=prior)
    layer.weight.copy_(weight.view_as(layer.weight))
    layer.bias.copy_(bias)


def elimination_order(
    moments: Moments, weight: torch.Tensor, group_size: int, ridge: float = RIDGE
) -> tuple[torch.Tensor, torch.Tensor]:
    """In which order to remove inputs, the least important first, and the error then.

    Removing input j raises the squared error of the outputs by ‖w_j‖² / [C⁻¹]_jj
    once the others have made up for it as well as they can (Hassibi and Stork 1993,
    Optimal Brain Surgeon, equation 5; for whole columns Kurtic et al. 2023, ZipLM,
    section 3.1). The ``group_size`` cheapest are removed, the rest is updated, and so
    on.

    Args:
        moments: of the inputs; C is their covariance + λI.
        weight: (outputs, inputs).

    Returns:
        order: int64 (inputs,); the most important inputs stand last.
        errors: float64 (groups + 1,): the error, as a fraction of the outputs'
            variance, after 0, 1, … groups are removed; from 0 to 1, never falling.
    """
    covariance = moments.matrix(centred=True, damping=ridge).cpu()
    w = weight.detach().cpu().double().clone()  # (outputs, inputs), updated below
    total = torch.einsum("oi,ij,oj->", w, covariance, w).clamp_min(1e-30)
    inverse = torch.linalg.inv(covariance)
    left, order, errors = torch.ones(len(covariance), dtype=torch.bool), [], [0.0]
    while left.any():
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
    return torch.cat(order), torch.tensor(errors, dtype=torch.float64)


def allocate_budget(
    errors: Mapping[str, torch.Tensor],
    costs: Mapping[str, torch.Tensor],
    budget: float,
) -> dict[str, int]:
    """How many groups each layer loses, so that the rest costs at most ``budget``.

    The least sum of errors among those on the lower convex hull: for a price λ each
    layer minimises error + λ·cost on its own (Everett 1963); λ is found by bisection.

    Args:
        errors: layer -> float64, error after 0, 1, … groups are removed.
        costs: layer -> float64, what the rest costs then (time, weights; any unit).
        budget: fraction of the whole cost that may be spent.

    Raises:
        TrainingError: a budget below what the kept groups cost, or above 1.
    """
    total = sum(float(curve[0]) for curve in costs.values())

    def choose(price: float) -> dict[str, int]:
        return {n: int((errors[n] + price * costs[n]).argmin()) for n in errors}

    def fraction(price: float) -> float:
        return sum(float(costs[n][lost]) for n, lost in choose(price).items()) / total

    low, high = 0.0, 1e12 / total
    smallest = fraction(high)
    if not smallest <= budget <= 1:
        raise TrainingError(
            f"budget={budget}: it must be a fraction of the cost between "
            f"{smallest:.2f}, which the groups that stay cost, and 1."
        )
    for _ in range(100):
        middle = (low + high) / 2
        if fraction(middle) > budget:
            low = middle
        else:
            high = middle
    return choose(high)
