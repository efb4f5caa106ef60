"""Least squares: which inputs of a linear map are superfluous, and what mends the loss.

A linear map reads inputs h and gives W·h + b. Without some of them, the best that the
others can do is a least-squares problem whose data are means over examples: of h, of
h·hᵀ, and of what the map shall give. No gradient, no epoch: one pass, one solve.
"""

from collections.abc import Mapping, Sequence

import torch

from ..core.errors import TrainingError
from ..evaluation.moments import Moments

RIDGE = 1e-3  # of the mean variance: keeps what hardly varies from being relied on


def solve(
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
        prior: P, (outputs, inputs), what few examples leave W at: zeros by default.

    Raises:
        DataError: no examples. TrainingError: a ridge that isn't positive, NaN.
    """
    covariance = moments.matrix(centred=True).cpu()
    xx, tx = covariance[:inputs, :inputs], covariance[inputs:, :inputs]
    prior = torch.zeros_like(tx) if prior is None else prior.detach().cpu().double()
    rest = tx - prior @ xx
    weight = prior + torch.linalg.solve(damped(xx, ridge), rest.T).T
    mean = moments.mean.cpu()
    return weight.float(), (mean[inputs:] - weight @ mean[:inputs]).float()


def damped(covariance: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """Covariance + λI, λ = ``ridge`` times the mean variance.

    Raises:
        TrainingError: a ridge that isn't positive; NaN.
    """
    if not ridge > 0:
        raise TrainingError(f"ridge={ridge}: it must be positive.")
    scale = covariance.diagonal().mean().clamp_min(1e-12)
    if not torch.isfinite(covariance).all():
        raise TrainingError("The covariance holds NaN or infinity.")
    return covariance + ridge * scale * torch.eye(
        len(covariance), dtype=covariance.dtype, device=covariance.device
    )


def eliminate(
    covariance: torch.Tensor,
    weight: torch.Tensor,
    group: int = 8,
    ridge: float = RIDGE,
    most: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """In which order inputs go, the least missed first, and what each step costs.

    Taking input j away raises the squared error of the outputs by ‖w_j‖² / [C⁻¹]_jj
    once the others have made up for it as well as they can (Hassibi and Stork 1993,
    Optimal Brain Surgeon, equation 5; for whole columns Kurtic et al. 2023, ZipLM,
    section 3.1). The cheapest ``group`` go, the rest is updated, and so on.

    Args:
        covariance: of the inputs, (inputs, inputs).
        weight: (outputs, inputs).
        most: stop when so many are gone; those that stay follow in their own order.

    Returns:
        order: int64 (inputs,); what remains longest stands last.
        errors: float64 (groups + 1,): the error, as a share of the outputs' variance,
            after so many groups are gone; from 0 to 1, never falling.

    Raises:
        TrainingError: shapes that don't fit, a group below 1, NaN.
    """
    inputs = len(covariance)
    if covariance.shape != (inputs, inputs) or weight.shape[1:] != (inputs,):
        raise TrainingError(
            f"covariance {tuple(covariance.shape)} and weight {tuple(weight.shape)} "
            "don't belong together."
        )
    if group < 1:
        raise TrainingError(f"group={group}: one input at least must go at a time.")
    covariance = damped(covariance.cpu().double(), ridge)
    w = weight.detach().cpu().double().clone()  # (outputs, inputs), mended
    total = torch.einsum("oi,ij,oj->", w, covariance, w).clamp_min(1e-30)
    if not torch.isfinite(w).all():
        raise TrainingError("The weights hold NaN or infinity.")
    inverse = torch.linalg.inv(covariance)
    left, order, errors = torch.ones(inputs, dtype=torch.bool), [], [0.0]
    while int(left.sum()) > (0 if most is None else inputs - most):
        rest = left.nonzero().flatten()
        missed = w[:, rest].pow(2).sum(0) / inverse.diagonal()[rest]
        gone = rest[missed.argsort(stable=True)[:group]]
        block = torch.linalg.inv(inverse[gone][:, gone])  # (gone, gone)
        loss = torch.einsum("og,gh,oh->", w[:, gone], block, w[:, gone])
        errors.append(errors[-1] + max(0.0, float(loss / total)))
        share = block @ inverse[gone]  # (gone, inputs)
        w -= w[:, gone] @ share  # in place, here and below: what is gone becomes zero
        inverse.addmm_(inverse[:, gone], share, alpha=-1)
        order.append(gone)
        left[gone] = False
    order.append(left.nonzero().flatten())
    return torch.cat(order), torch.tensor(errors, dtype=torch.float64)


def allot(
    errors: Mapping[str, Sequence[float]],
    costs: Mapping[str, Sequence[float]],
    budget: float,
    least: Mapping[str, int] | int = 1,
) -> dict[str, int]:
    """How many groups each layer loses, so that the rest costs at most ``budget``.

    The least sum of errors among those on the lower convex hull: for a price λ each
    layer minimises error + λ·cost on its own (Everett 1963); λ is found by bisection.

    Args:
        errors: layer -> error after 0, 1, … groups are gone.
        costs: layer -> what the rest costs then (time, weights; any unit); falling.
        budget: share of the whole cost, between 0 and 1.
        least: groups that every layer keeps, or each by its name.

    Raises:
        TrainingError: a budget outside (0, 1], or below what the least groups cost.
    """
    if not 0 < budget <= 1:
        raise TrainingError(
            f"budget={budget}: a share of the cost, above 0, 1 at most."
        )
    groups = {name: len(curve) - 1 for name, curve in errors.items()}
    fewest = least if isinstance(least, Mapping) else dict.fromkeys(errors, least)
    total = sum(curve[0] for curve in costs.values())

    def at(price: float) -> dict[str, int]:
        chosen = {}
        for name, curve in errors.items():
            most = max(0, groups[name] - fewest[name])
            values = [curve[i] + price * costs[name][i] for i in range(most + 1)]
            chosen[name] = min(range(most + 1), key=values.__getitem__)
        return chosen

    def share(chosen: Mapping[str, int]) -> float:
        return sum(costs[n][gone] for n, gone in chosen.items()) / total

    low, high = 0.0, 1.0 / total
    if share(at(low)) <= budget:
        return at(low)
    while share(at(high)) > budget:
        high *= 4
        if high > 1e12 / total:
            raise TrainingError(
                f"budget={budget}: what must stay already costs "
                f"{share(at(high)):.2f} of the whole."
            )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(at(middle)) > budget else (low, middle)
    return at(high)
