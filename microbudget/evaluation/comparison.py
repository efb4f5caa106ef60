"""Is one model better than another? A difference with an interval that says so.

Two models are evaluated on the same items, from one seed or from several. What is hard
for both cancels out in the difference of their scores, item by item.
"""

from dataclasses import dataclass

import numpy as np

from ..core.errors import EvaluationError


@dataclass(frozen=True)
class Difference:
    """A difference and its 95 % interval; it prints itself.

    Attributes:
        value: mean difference. low, high: ends of the interval.
        unit: of all three, such as "points" (percentage points).
        chance: what the interval holds: another draw of these would give another value.
        floor: width that would be left with unlimited seeds.
    """

    value: float
    low: float
    high: float
    unit: str = "points"
    chance: str = "test items"
    floor: float = 0.0

    @property
    def clear(self) -> bool:
        """The interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def within(self, limit: float) -> bool:
        """The whole interval lies within ``limit`` of zero, on both sides."""
        return -limit < self.low and self.high < limit

    def verdict(self, margin: float) -> str:
        """The whole interval against a margin that was set before the result.

        Returns:
            "passes" (all above the margin), "fails" (all below), else "can't tell".
        """
        if self.low > margin:
            return "passes"
        return "fails" if self.high < margin else "can't tell"

    @property
    def words(self) -> str:
        """What happened, after a subject: "rose by …", "fell by …", or neither."""
        if not self.clear:
            return f"showed no difference that this test could see ({self})"
        verb, sign = ("rose", 1) if self.value > 0 else ("fell", -1)
        near, far = sorted((sign * self.low, sign * self.high))
        return (
            f"{verb} by {abs(self.value):.1f} {self.unit} "
            f"(95 % interval {near:.1f} to {far:.1f})"
        )

    def __str__(self):
        value, low, high = map(_signed, (self.value, self.low, self.high))
        return f"{value} {self.unit}, 95 % interval {low} to {high}"


def compare(a, b, *, scale: float = 100.0, unit: str = "points") -> Difference:
    """Mean of ``b - a``, with its 95 % interval.

    One run of each: Student's interval of the mean over items, which holds the chance
    in the choice of items only. Several seeds: seeds and items are two crossed random
    effects; with mean squares a of the seeds' means, b of the items' means and c of the
    rest, each divided by what it averages over, the variance is max(a + b - c, a, b),
    with Satterthwaite's degrees of freedom (Satterthwaite 1946, An approximate
    distribution of estimates of variance components).

    Args:
        a, b: scores, such as 1 for right and 0 for wrong: (items,) of one run, or
            (seeds, items).
        scale: what a score of 1 counts, 100 for percentage points.

    Raises:
        EvaluationError: of different shapes, or fewer than two items or seeds.
    """
    from scipy import stats

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim not in (1, 2) or min(a.shape) < 2:
        raise EvaluationError(
            f"Scores of shapes {a.shape} and {b.shape}: two of equal shape are needed, "
            "(items,) or (seeds, items), at least two of each."
        )
    d = scale * (b - a)
    if d.ndim == 1:
        half = stats.t.ppf(0.975, len(d) - 1) * stats.sem(d)
        return Difference(*_around(d.mean(), half), unit)
    seeds, items = d.shape
    rest = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
    of_seeds = d.mean(1).var(ddof=1) / seeds
    of_items = d.mean(0).var(ddof=1) / items
    of_rest = (rest**2).sum() / ((seeds - 1) * (items - 1)) / (seeds * items)
    variance = max(of_seeds + of_items - of_rest, of_seeds, of_items)
    half = 0.0
    if variance > 0:
        freedom = variance**2 / (
            of_seeds**2 / (seeds - 1)
            + of_items**2 / (items - 1)
            + of_rest**2 / ((seeds - 1) * (items - 1))
        )
        half = stats.t.ppf(0.975, freedom) * variance**0.5
    floor = 2 * 1.96 * max(of_items - of_rest, 0.0) ** 0.5
    found = _around(d.mean(), half)
    return Difference(*found, unit, "seeds and test items", floor)


def interval(scores, *, scale: float = 100.0, unit: str = "%") -> Difference:
    """A mean of its own with its 95 % interval: ``compare`` with zeros."""
    scores = np.asarray(scores, dtype=float)
    return compare(np.zeros_like(scores), scores, scale=scale, unit=unit)


def _around(mean: float, half: float) -> tuple[float, float, float]:
    return float(mean), float(mean - half), float(mean + half)


def _signed(x: float) -> str:
    return f"{x:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")
