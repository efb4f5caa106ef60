"""Least squares: scikit-learn's ridge, predicted errors, and budgets that are kept."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from microbudget.core.errors import TrainingError
from microbudget.evaluation.moments import Moments
from microbudget.pruning import reconstruction


def samples(n=200, inputs=9, outputs=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(n, inputs, generator=generator) @ mixing + 1.5
    weight = torch.randn(outputs, inputs, generator=generator)
    return x, weight


def moments_of(*parts):
    rows = torch.cat(parts, 1)
    found = Moments.zeros(rows.shape[1])
    for batch in rows.split(64):
        found.add(batch)
    return found


def covariance_of(x):
    return moments_of(x).matrix(centred=True)


@given(seed=st.integers(0, 200), ridge=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_the_solution_is_scikit_learns_ridge(seed, ridge):
    x, weight = samples(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    t = x @ weight.T + 0.3 * torch.randn(len(x), 4, generator=generator)
    x, t = x.double(), t.double()
    scale = float(covariance_of(x).diagonal().mean())
    ours, bias = reconstruction.least_squares(moments_of(x, t), x.shape[1], ridge)
    theirs = Ridge(alpha=ridge * scale * len(x)).fit(x, t)
    torch.testing.assert_close(
        ours, torch.from_numpy(theirs.coef_).float(), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        bias, torch.from_numpy(theirs.intercept_).float(), rtol=1e-3, atol=5e-3
    )


def test_a_huge_ridge_leaves_the_weights_at_the_prior():
    prior = torch.randn(2, 3)
    moments = moments_of(torch.randn(9, 5))
    weight, _ = reconstruction.least_squares(moments, 3, 1e9, prior)
    torch.testing.assert_close(weight, prior, rtol=1e-3, atol=1e-3)


@given(seed=st.integers(0, 100), group=st.integers(1, 4))
def test_elimination_predicts_the_error_of_the_refit(seed, group):
    x, weight = samples(seed=seed)
    t = x @ weight.T
    order, errors = reconstruction.elimination_order(
        moments_of(x), weight, group, ridge=1e-9
    )
    assert sorted(order.tolist()) == list(range(9))
    assert (errors.diff() >= 0).all()
    assert float(errors[-1]) == pytest.approx(1, abs=1e-3)
    stay = order[2 * group :]
    if len(stay):
        moments = moments_of(x[:, stay], t)
        w, b = reconstruction.least_squares(moments, len(stay), 1e-9)
        left = (t - x[:, stay] @ w.T - b).pow(2).sum() / (t - t.mean(0)).pow(2).sum()
        assert float(errors[2]) == pytest.approx(float(left), abs=2e-3)


def test_a_copy_of_another_input_is_removed_first():
    x, weight = samples()
    x = torch.cat([x, x[:, :1] + 1e-4 * torch.randn(len(x), 1)], 1)
    weight = torch.cat([weight, 9 * torch.ones(4, 1)], 1)  # however large its weights
    order, errors = reconstruction.elimination_order(
        moments_of(x), weight, 1, ridge=1e-7
    )
    assert order[0] in (0, 9)
    assert errors[1] < 1e-3


@given(budget=st.floats(0.3, 1), seed=st.integers(0, 50))
def test_a_budget_is_kept_and_no_better_split_is_missed(budget, seed):
    generator = torch.Generator().manual_seed(seed)
    errors, costs = {}, {}
    for i in range(3):  # three layers may lose 0 to 3 of their 4 groups
        steps = torch.rand(3, generator=generator, dtype=torch.float64).sort().values
        errors[str(i)] = torch.cat([torch.zeros(1), steps.cumsum(0)])
        costs[str(i)] = (1.0 + i) * torch.arange(4.0, 0, -1).double()
    removed = reconstruction.allocate_budget(errors, costs, budget)

    def total(table, chosen):
        return sum(float(table[name][groups]) for name, groups in chosen.items())

    spent = total(costs, removed)
    assert spent <= budget * total(costs, dict.fromkeys(costs, 0)) + 1e-9
    for groups in itertools.product(range(4), repeat=3):
        other = dict(zip("012", groups, strict=True))
        if total(costs, other) <= spent:  # nothing as cheap is better
            assert total(errors, other) >= total(errors, removed) - 1e-9


@pytest.mark.parametrize("budget", [0, -1, 1.1, math.nan, 0.1])
def test_budgets_that_cannot_be_met_are_refused(budget):
    errors, costs = torch.tensor([0, 0.1, 0.5]), torch.tensor([6.0, 4, 2])
    with pytest.raises(TrainingError, match=r"budget.*0\.33, which"):
        reconstruction.allocate_budget({"a": errors}, {"a": costs}, budget)
