"""Ranks by a budget: how many directions each layer may keep, for a sum of weights.

A direction costs as many weights as its row and its column have, and keeps its energy.
Buying the direction with the most energy per weight first is the best that can be done
with what has been spent (marginal returns, Everett 1963), if returns only diminish.
They do, direction by direction; but above break-even a layer is better left whole,
which keeps all its energy at once. So this is on offer at every rank, too: purchases
then follow the upper convex hull of a layer's points (weights, energy), as in bit
allocation (Shoham and Gersho 1988).
"""

from collections.abc import Mapping

from ..core.errors import MicrobudgetError
from .decomposition import Decomposition, break_even, count_weights, uniform_ranks


def ranks_by_budget(
    decompositions: Mapping[str, Decomposition],
    weights: int,
    *,
    normalize: bool = True,
) -> dict[str, int]:
    """Ranks whose matrices hold at most ``weights`` weights together.

    Every layer starts at rank 1. Then the purchase with the most energy per weight is
    made, again and again, until nothing affordable is left.

    Args:
        weights: of the matrices of all layers in ``decompositions``, biases aside.
        normalize: count energy as a fraction of the layer's own; else as it is.

    Returns:
        name -> rank, for ``factorize``; none for layers to be left whole.

    Raises:
        MicrobudgetError: a budget too small even for rank 1 everywhere.
    """
    ranks: dict[str, int | None] = dict(uniform_ranks(decompositions, 1))
    left = weights - count_weights(decompositions, ranks)
    if left < 0:
        raise MicrobudgetError(
            f"A budget of {weights:,} weights is too small: rank 1 everywhere takes "
            f"{weights - left:,}."
        )
    energies = {}  # name -> what 0, 1, …, all directions keep
    for name in ranks:
        squares = decompositions[name].values.square()
        unit = (float(squares.sum()) or 1.0) if normalize else 1.0
        energies[name] = [0.0, *(squares.cumsum(0) / unit).tolist()]

    def offer(name: str) -> tuple[float, int, int | None]:
        """The best that a layer can pay: energy per weight, weights, its new rank."""
        rank, energy, shape = ranks[name], energies[name], decompositions[name].shape
        found = [(0.0, 0, rank)]  # nothing
        if rank is None:
            return found[0]
        price = sum(shape)
        if rank < break_even(*shape) and price <= left:
            found.append(((energy[rank + 1] - energy[rank]) / price, price, rank + 1))
        price = shape[0] * shape[1] - rank * price
        if price <= left:
            found.append(((energy[-1] - energy[rank]) / price, price, None))
        return max(found, key=lambda purchase: purchase[0])

    offers = {name: offer(name) for name in ranks}
    while any(gain for gain, _, _ in offers.values()):
        name = min(offers, key=lambda n: (-offers[n][0], n))
        _, price, new = offers[name]
        if price <= left:  # others may have spent it meanwhile
            left -= price
            ranks[name] = new
        offers[name] = offer(name)
    return {name: rank for name, rank in ranks.items() if rank is not None}
