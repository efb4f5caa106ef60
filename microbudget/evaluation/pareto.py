"""Which of several models nobody has to regret: the Pareto front."""

from collections.abc import Mapping, Sequence

from ..core.errors import EvaluationError


def pareto_front(
    points: Mapping[str, Sequence[float]], higher: Sequence[bool]
) -> list[str]:
    """Names of the points that no other point beats, in the order given.

    A point beats another that is nowhere better and somewhere worse (Pareto 1906); of
    equal points all stay.

    Args:
        points: name -> its numbers, such as (milliseconds, accuracy).
        higher: for each number, whether more of it is better.

    Raises:
        EvaluationError: a number is missing or NaN.
    """
    signed = {}
    for name, values in points.items():
        if len(values) != len(higher) or any(value != value for value in values):
            raise EvaluationError(
                f"{name}: {len(higher)} numbers wanted, got {values}."
            )
        signed[name] = [v if up else -v for v, up in zip(values, higher, strict=True)]

    def beats(a: list[float], b: list[float]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    return [
        name
        for name, own in signed.items()
        if not any(beats(other, own) for other in signed.values())
    ]
