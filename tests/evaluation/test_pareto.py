"""The Pareto front: what is not on it is beaten from it."""

from hypothesis import given
from hypothesis import strategies as st

from microbudget.evaluation.pareto import pareto_front

numbers = st.tuples(st.integers(0, 5), st.integers(0, 5))
clouds = st.dictionaries(st.text("abcdef", min_size=1), numbers, min_size=1)


@given(points=clouds, higher=st.tuples(st.booleans(), st.booleans()))
def test_what_is_not_on_the_front_is_beaten_from_it(points, higher):
    front = pareto_front(points, higher)
    signs = [1 if up else -1 for up in higher]

    def beats(a, b):
        pairs = [(s * x, s * y) for s, x, y in zip(signs, a, b, strict=True)]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    assert front
    for name, own in points.items():
        beaten = any(beats(points[other], own) for other in front)
        assert beaten == (name not in front)
