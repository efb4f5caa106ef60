"""Mixed precision: the budget is kept, and what minds gets more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbudget.core.errors import QuantizationError
from microbudget.quantization import mixed

BITS = (8, 6, 4, 2)
harms = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(st.floats(0, 5), min_size=4, max_size=4).map(sorted),
    min_size=1,
    max_size=8,
)


@given(harms, st.floats(2, 8), st.randoms())
def test_the_budget_is_kept(found, budget, random):
    harm = {name: dict(zip(BITS, own, strict=True)) for name, own in found.items()}
    weights = {name: random.randint(1, 1000) for name in harm}
    chosen = mixed.choose(harm, weights, budget)
    assert set(chosen) == set(harm)
    assert mixed.mean_bits(chosen, weights) <= budget + 1e-9


def test_the_sensitive_part_keeps_its_bits():
    harm = {"minds": {8: 0, 4: 5.0}, "doesn't": {8: 0, 4: 0.1}}
    weights = {"minds": 100, "doesn't": 100}
    assert mixed.choose(harm, weights, 6) == {"minds": 8, "doesn't": 4}
    assert mixed.choose(harm, weights, 8) == {"minds": 8, "doesn't": 8}
    assert mixed.choose(harm, weights, 4) == {"minds": 4, "doesn't": 4}


@pytest.mark.parametrize(
    ("harm", "weights", "budget"),
    [({}, {}, 4), ({"a": {8: 0}}, {"b": 1}, 4), ({"a": {8: 0}}, {"a": 1}, 4),
     ({"a": {}}, {"a": 1}, 4), ({"a": {8: 0, 2: 1}}, {"a": 0}, 4)],
)  # fmt: skip
def test_what_cant_be_chosen_is_said(harm, weights, budget):
    with pytest.raises(QuantizationError):
        mixed.choose(harm, weights, budget)
