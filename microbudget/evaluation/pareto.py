"""Which of several models no other one beats: the Pareto front."""

from collections.abc import Mapping, Sequence


def pareto_front(
    points: Mapping[str, Sequence[float]], higher: Sequence[bool]
) -> list[str]:
    """Names of the points that no other point beats, in the order given.

    A point beats another that is nowhere better and somewhere worse (Pareto 1906); of
    equal points all stay.

    Args:
        points: name -> its numbers, such as (milliseconds, accuracy).
        higher: for each number, whether more of it is better.
    """
    signs = [1 if up else -1 for up in higher]
    signed = {
        name: [sign * value for sign, value in zip(signs, values, strict=True)]
        for name, values in points.items()
    }

    def beats(a: list[float], b: list[float]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    return [
        name
        for name, own in signed.items()
        if not any(beats(other, own) for other in signed.values())
    ]
