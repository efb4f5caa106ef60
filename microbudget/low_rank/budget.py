"""Ranks by a budget: how many directions each layer may keep, for a sum of weights.

A direction costs as many weights as its row and its column have, and keeps its energy.
Buying the direction with the most energy per weight first is the best that can be done
with what has been spent (marginal returns, Everett 1963), if returns only diminish.
They do, direction by direction; but above break-even a layer is better left whole,
which keeps all its energy at once. So each layer offers the corners of the upper convex
hull of its points (weights, energy), as in bit allocation (Shoham and Gersho 1988).
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..core.errors import MicrobudgetError
from .decomposition import Decomposition, break_even


class Offer(NamedTuple):
    """One state that a layer can be in; ``rank`` is None where it is left whole."""

    weights: int
    energy: float
    rank: int | None


def ranks_by_budget(
    decompositions: Mapping[str, Decomposition],
    weights: int,
    *,
    normalize: bool = True,
) -> dict[str, int]:
    """Ranks whose matrices hold at most ``weights`` weights together.

    Every layer starts at rank 1. A heap then gives, again and again, the purchase with
    the most energy per weight, until nothing affordable is left.

    Args:
        weights: of the matrices of all layers in ``decompositions``, biases aside.
        normalize: count energy as a fraction of the layer's own; else as it is.

    Returns:
        name -> rank, for ``factorize``; none for layers to be left whole.

    Raises:
        MicrobudgetError: a budget too small even for rank 1 everywhere.
    """
    every = {n: every_offer(d, normalize) for n, d in decompositions.items()}
    offers = {name: hull(points) for name, points in every.items()}
    bought = dict.fromkeys(offers, 0)  # name -> which of its offers it has
    left = weights - sum(points[0].weights for points in offers.values())
    if left < 0:
        raise MicrobudgetError(
            f"A budget of {weights:,} weights is too small: rank 1 everywhere takes "
            f"{weights - left:,}."
        )
    # heapq gives the smallest first, hence the minus
    queue = [(-_next_slope(points, 0), name) for name, points in offers.items()]
    heapq.heapify(queue)
    while queue:
        slope, name = heapq.heappop(queue)
        if slope >= 0:  # no further offer, or nothing to be gained by it
            continue
        now, following = offers[name][bought[name] : bought[name] + 2]
        price = following.weights - now.weights
        if price <= left:
            left -= price
            bought[name] += 1
        elif following.rank is None:
            # Too expensive to be left whole: from here on direction by direction.
            offers[name], bought[name] = every[name][now.rank - 1 : -1], 0
        else:
            continue
        heapq.heappush(queue, (-_next_slope(offers[name], bought[name]), name))
    ranks = {name: offers[name][i].rank for name, i in bought.items()}
    return {name: rank for name, rank in ranks.items() if rank is not None}


def every_offer(decomposition: Decomposition, normalize: bool = True) -> list[Offer]:
    """Every rank up to break-even, and the whole layer last."""
    outputs, inputs = decomposition.shape
    energy = decomposition.values.square().cumsum(0)
    unit = (float(energy[-1]) or 1.0) if normalize else 1.0
    energy = (energy * (1.0 / unit)).tolist()
    highest = min(break_even(outputs, inputs), len(energy))
    thin = [
        Offer(rank * (outputs + inputs), energy[rank - 1], rank)
        for rank in range(1, highest + 1)
    ]
    return [*thin, Offer(outputs * inputs, energy[-1], None)]


def hull(points: Sequence[Offer]) -> list[Offer]:
    """The corners of the points' upper convex hull, from left to right."""
    corners: list[Offer] = []
    for point in points:
        # the last corner goes when it lies below the line from the one before to here
        while len(corners) > 1 and not _is_above(corners[-1], corners[-2], point):
            corners.pop()
        corners.append(point)
    return corners


def _next_slope(points: Sequence[Offer], i: int) -> float:
    """Energy per weight of the purchase that follows the ``i``-th; 0 after the last."""
    if i + 1 >= len(points):
        return 0.0
    now, following = points[i : i + 2]
    return (following.energy - now.energy) / (following.weights - now.weights)


def _is_above(point: Offer, left: Offer, right: Offer) -> bool:
    """Whether ``point`` lies on or above the line through the other two."""
    rise, run = point.energy - left.energy, point.weights - left.weights
    whole_rise, whole_run = right.energy - left.energy, right.weights - left.weights
    return rise * whole_run >= whole_rise * run
