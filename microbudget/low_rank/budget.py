"""Ranks by a budget: how many directions each map may keep, for a sum of numbers.

A direction costs as many numbers as its row and its column have, and keeps its energy.
Buying the direction with the most energy per number first is the best that can be done
with what has been spent (marginal returns, Everett 1963), if returns only diminish.
They do, direction by direction; but above break-even a map is better left whole, which
keeps all its energy at once. So each map's offers are the corners of the upper convex
hull of its points (numbers, energy), as in bit allocation (Shoham and Gersho 1988).
"""

import heapq
from collections.abc import Mapping

import torch

from ..core.errors import MicrobudgetError
from .factorize import Decomposition, break_even

WHOLE = None


def by_budget(
    found: Mapping[str, Decomposition],
    numbers: int,
    *,
    weights: Mapping[str, float] | None = None,
    shares: bool = True,
) -> dict[str, int]:
    """Ranks whose matrices hold at most ``numbers`` numbers together.

    Args:
        numbers: for the matrices of all maps in ``found``, biases aside.
        weights: name -> what a map's energy is worth; default 1.
        shares: count energy as a share of the map's own; else as it is.

    Returns:
        name -> rank, for ``factorization.factorize``; none for maps to be left whole.

    Raises:
        MicrobudgetError: no maps, too small a budget even for rank 1 everywhere.
    """
    if not found:
        raise MicrobudgetError("There are no maps to share a budget among.")
    single = {
        name: _points(d, (weights or {}).get(name, 1.0), shares)
        for name, d in found.items()
    }
    offers = {name: _hull(points) for name, points in single.items()}
    at = dict.fromkeys(offers, 0)
    left = numbers - sum(points[0][0] for points in offers.values())
    if left < 0:
        raise MicrobudgetError(
            f"{numbers:,} numbers are too few: rank 1 everywhere takes "
            f"{numbers - left:,}."
        )
    queue = [(-_slope(points, 0), name) for name, points in offers.items()]
    heapq.heapify(queue)
    while queue:
        slope, name = heapq.heappop(queue)
        if slope >= 0:  # no further corner, or nothing to be gained
            continue
        points, i = offers[name], at[name]
        price = points[i + 1][0] - points[i][0]
        if price <= left:
            left -= price
            at[name] = i + 1
        elif points[i + 1][2] is WHOLE:
            # too dear at once: from here on direction by direction
            offers[name], at[name] = single[name][points[i][2] - 1 : -1], 0
        else:
            continue
        heapq.heappush(queue, (-_slope(offers[name], at[name]), name))
    ranks = {name: offers[name][i][2] for name, i in at.items()}
    return {name: rank for name, rank in ranks.items() if rank is not WHOLE}


def corners(
    decomposition: Decomposition, weight: float = 1.0, shares: bool = True
) -> list[tuple[int, float, int | None]]:
    """(numbers, energy, rank) of the states worth buying, from rank 1 to whole.

    Raises:
        MicrobudgetError: a weight that isn't positive and finite.
    """
    return _hull(_points(decomposition, weight, shares))


def _points(decomposition: Decomposition, weight: float, shares: bool) -> list:
    """(numbers, energy, rank) of every rank that gains, and of the whole map last."""
    if not 0 < weight < float("inf"):
        raise MicrobudgetError(f"weight={weight}: it must be positive.")
    out, into = decomposition.shape
    kept = decomposition.values.square().cumsum(0)
    total = float(kept[-1]) or 1.0
    kept = (kept * (weight / total if shares else weight)).tolist()
    most = min(break_even(out, into), len(kept))
    points = [
        (rank * (out + into), kept[rank - 1], rank) for rank in range(1, most + 1)
    ]
    return [*points, (out * into, kept[-1], WHOLE)]


def _hull(points: list) -> list:
    """The corners of the upper convex hull."""
    hull: list = []
    for point in points:
        # the last corner goes when it lies below the line from the one before to here
        while len(hull) > 1 and not _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def kept(found: Mapping[str, Decomposition], ranks: Mapping[str, int]) -> torch.Tensor:
    """Every map's share of energy that these ranks keep, in the order of ``found``."""
    shares = [d.energy[ranks.get(name, -1)] for name, d in found.items()]
    return torch.stack(shares)


def _slope(points: list, i: int) -> float:
    if i + 1 >= len(points):
        return 0.0
    return (points[i + 1][1] - points[i][1]) / (points[i + 1][0] - points[i][0])


def _above(a: tuple, b: tuple, c: tuple) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
