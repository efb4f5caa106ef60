"""Mixed precision: more bits where the model is sensitive, fewer where it isn't.

One part at a time is rounded and the loss measured; losses are taken to add up (Dong et
al. 2019, HAWQ, arXiv:1905.03696, rate each layer alone, too, by its curvature).
"""

from collections.abc import Mapping

from ..core.errors import QuantizationError


def choose_bits(
    sensitivity: Mapping[str, Mapping[int, float]],
    weights: Mapping[str, int],
    budget: float,
) -> dict[str, int]:
    """Bits for every part so that the mean is within a budget; greedy.

    All parts begin with their most bits. The part whose next step down costs the least
    loss for each bit saved takes that step, until the budget is met.

    Args:
        sensitivity: part -> bits -> loss with this part alone at these bits.
        weights: part -> how many weights it has.
        budget: bits per weight, as the mean over all weights.

    Returns:
        part -> bits.

    Raises:
        QuantizationError: a budget below what the fewest bits take.
    """
    assert set(sensitivity) == set(weights), "two tables of different parts"
    chosen = {name: max(losses) for name, losses in sensitivity.items()}
    fewest = {name: min(losses) for name, losses in sensitivity.items()}
    if budget < mean_bits(fewest, weights):
        raise QuantizationError(
            f"A budget of {budget} bits per weight is below "
            f"{mean_bits(fewest, weights):.2f}, the fewest that were measured: measure "
            "fewer bits, or allow more."
        )
    while mean_bits(chosen, weights) > budget:
        loss_per_bit = {}
        for name, losses in sensitivity.items():
            for bits, loss in losses.items():
                if bits < chosen[name]:
                    saved = (chosen[name] - bits) * weights[name]
                    loss_per_bit[name, bits] = (loss - losses[chosen[name]]) / saved
        name, bits = min(loss_per_bit, key=loss_per_bit.get)
        chosen[name] = bits
    return chosen


def mean_bits(chosen: Mapping[str, int], weights: Mapping[str, int]) -> float:
    """Bits per weight, over all of them."""
    return sum(chosen[n] * weights[n] for n in chosen) / sum(weights.values())
