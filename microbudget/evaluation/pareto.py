"""Which of several models no other one beats: the Pareto front."""

from collections.abc import Mapping, Sequence

import numpy as np


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
    values = np.array(list(points.values())) * np.where(higher, 1, -1)  # (n, numbers)
    ours, others = values[:, None], values
    beats = (ours >= others).all(-1) & (ours > others).any(
        -1
    )  # (n, n): row beats column
    return [name for name, lost in zip(points, beats.any(0), strict=True) if not lost]
