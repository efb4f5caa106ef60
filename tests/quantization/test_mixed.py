"""Mixed precision: the budget is kept, and what is sensitive gets more bits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbudget.core.errors import QuantizationError
from microbudget.quantization import mixed

BITS = (8, 6, 4, 2)
tables = st.lists(
    st.lists(st.floats(0, 5), min_size=4, max_size=4).map(sorted),
    min_size=1,
    max_size=3,
).map(
    lambda rows: {
        f"part {i}": dict(zip(BITS, losses, strict=True))
        for i, losses in enumerate(rows)
    }
)


@given(tables, st.floats(2, 8), st.randoms())
def test_the_budget_is_kept(table, budget, random):
    weights = {name: random.randint(1, 1000) for name in table}
    chosen = mixed.choose_bits(table, weights, budget)
    assert set(chosen) == set(table)
    assert mixed.mean_bits(chosen, weights) <= budget + 1e-9


def test_the_sensitive_part_keeps_its_bits():
    table = {"sensitive": {8: 0, 4: 5.0}, "robust": {8: 0, 4: 0.1}}
    weights = {"sensitive": 100, "robust": 100}
    for budget, expected in ((8, (8, 8)), (6, (8, 4)), (4, (4, 4))):
        chosen = mixed.choose_bits(table, weights, budget)
        assert (chosen["sensitive"], chosen["robust"]) == expected
    # losses are counted per saved bit: of a part with many weights a step is cheap
    chosen = mixed.choose_bits(table, {"sensitive": 10_000, "robust": 100}, 7.9)
    assert (chosen["sensitive"], chosen["robust"]) == (4, 8)


def test_a_budget_below_the_fewest_bits_is_said():
    with pytest.raises(QuantizationError, match=r"below 6\.00"):
        mixed.choose_bits({"a": {8: 0, 6: 1}}, {"a": 1}, 4)
