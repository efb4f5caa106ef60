"""Mixed precision: more bits where the model minds, fewer where it doesn't.

One part at a time is rounded and the harm noted; harms are taken to add up (Dong et al.
2019, HAWQ, arXiv:1905.03696, judge a layer alone in the same way, by its curvature).
"""

from collections.abc import Mapping

from ..core.errors import QuantizationError


def choose(
    harm: Mapping[str, Mapping[int, float]],
    weights: Mapping[str, int],
    budget: float,
) -> dict[str, int]:
    """Bits for every part so that the mean is within a budget; greedy.

    All parts begin with their most bits. The part whose next step down costs least harm
    for each bit saved takes that step, until the budget is met.

    Args:
        harm: part -> bits -> loss (or any harm) with this part alone at these bits.
        weights: part -> how many weights it has.
        budget: bits a weight, in the mean over all weights.

    Returns:
        part -> bits.

    Raises:
        QuantizationError: nothing to choose from, parts that don't fit together, or a
            budget below what the fewest bits take.
    """
    if not harm or set(harm) != set(weights):
        raise QuantizationError("harm and weights must name the same parts.")
    if any(not own for own in harm.values()) or min(weights.values()) < 1:
        raise QuantizationError("Every part needs weights and a choice of bits.")
    chosen = {name: max(own) for name, own in harm.items()}
    total = sum(weights.values())
    least = sum(min(own) * weights[name] for name, own in harm.items()) / total
    if budget < least:
        raise QuantizationError(
            f"A budget of {budget} bits a weight is below {least:.2f}, the fewest that "
            "were tried: measure fewer bits, or allow more."
        )
    while mean_bits(chosen, weights) > budget:
        steps = {}
        for name, own in harm.items():
            for bits in (b for b in own if b < chosen[name]):
                saved = (chosen[name] - bits) * weights[name]
                steps[name, bits] = (own[bits] - own[chosen[name]]) / saved
        name, bits = min(steps, key=steps.get)
        chosen[name] = bits
    return chosen


def mean_bits(chosen: Mapping[str, int], weights: Mapping[str, int]) -> float:
    """Bits a weight, over all of them."""
    return sum(chosen[n] * weights[n] for n in chosen) / sum(weights.values())
