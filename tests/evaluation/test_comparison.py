"""Differences with intervals: what they say, and that they hold what they promise."""

import numpy as np
import pytest

from microbudget.core.errors import EvaluationError
from microbudget.evaluation import Difference, compare, interval


def test_one_run_is_the_paired_t_interval():
    from scipy import stats

    draw = np.random.default_rng(0)
    a, b = (draw.random((2, 300)) < [[0.7], [0.8]]).astype(float)
    found = compare(a, b)
    wanted = stats.ttest_rel(b, a).confidence_interval()
    assert found.value == pytest.approx(100 * (b - a).mean())
    assert (found.low, found.high) == pytest.approx(
        (100 * wanted.low, 100 * wanted.high)
    )
    assert found.chance == "test items"


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("seeds", "items"), [(3, 200), (5, 872)])
def test_the_interval_holds_the_truth_about_95_times_in_100(spread, seeds, items):
    """Seeds and items are drawn anew; the truth is over both."""
    draw = np.random.default_rng(1)
    repeats, gain = 300, 0.25
    difficulty = draw.normal(1.0, 1.5, 200_000)  # a large population of items

    def right(logit):
        return 1 / (1 + np.exp(-logit))

    shifts = draw.normal(gain, spread * 2**0.5, (400, 1))
    population = right(difficulty[:5000] + shifts) - right(difficulty[:5000])
    truth = 100 * population.mean()
    covered = 0
    for _ in range(repeats):
        own = draw.choice(difficulty, items)
        each = [draw.normal(0, spread, (seeds, 1)) for _ in range(2)]
        a = draw.random((seeds, items)) < right(own + each[0])
        b = draw.random((seeds, items)) < right(own + gain + each[1])
        found = compare(a, b)
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / repeats <= 1.0


def test_what_it_says_follows_sign_and_size():
    up, down = Difference(4.4, 3.3, 5.5), Difference(-4.4, -5.5, -3.3)
    unsure, none = Difference(0.3, -1.0, 1.6), Difference(0.0, 0.0, 0.0)
    assert up.words == "rose by 4.4 points (95 % interval 3.3 to 5.5)"
    assert down.words == "fell by 4.4 points (95 % interval 3.3 to 5.5)"
    assert unsure.words == (
        "showed no difference that this test could see "
        "(+0.3 points, 95 % interval −1.0 to +1.6)"
    )
    assert "0.0 points, 95 % interval 0.0 to 0.0" in none.words
    assert (up.clear, down.clear, unsure.clear, none.clear) == (
        True,
        True,
        False,
        False,
    )


def test_a_margin_is_passed_failed_or_undecided():
    assert Difference(-1, -2, 0).verdict(-3) == "passes"
    assert Difference(-5, -6, -4).verdict(-3) == "fails"
    assert Difference(-3, -4, -2).verdict(-3) == "can't tell"
    assert Difference(0.5, -0.4, 1.4).within(1.5)
    assert not Difference(0.5, -0.4, 1.6).within(1.5)


def test_equal_runs_differ_by_nothing():
    same = np.ones((3, 10))
    assert compare(same, same) == Difference(
        0.0, 0.0, 0.0, "points", "seeds and test items", 0.0
    )
    assert interval(np.ones(10)).value == 100


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1,), (1,)), ((1, 9), (1, 9))])
def test_bad_scores_are_refused(shapes):
    with pytest.raises(EvaluationError, match="equal shape"):
        compare(*map(np.zeros, shapes))
