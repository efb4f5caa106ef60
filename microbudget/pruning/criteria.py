"""Which weights go: rules that make masks, and schedules that prune little by little.

A rule is a function from ``masking.weights(model)`` to boolean masks, layer by layer,
``True`` where the weight stays:

===============  ==========================================================
``threshold``    magnitude below a value: zero
``random``       a share of every layer, drawn
``l1``           the smallest share of every layer
``global_l1``    the smallest share of all layers together
``structured``   the rows, or columns, of least norm, whole, in every layer
``two_four``     the two smallest of every four neighbours in a row (2:4)
===============  ==========================================================

Masks make no dense runtime faster and no file smaller: see ``shrinking``.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ..core.errors import TrainingError
from . import masks as masking
from .masks import Masks


def threshold(weights: Mapping[str, torch.Tensor], value: float) -> Masks:
    """Keep what is at least ``value`` in magnitude.

    Raises:
        TrainingError: a negative threshold, or one that leaves nothing anywhere.
    """
    if not value >= 0:
        raise TrainingError(f"threshold={value}: a magnitude is zero at least.")
    masks = {name: weight.abs() >= value for name, weight in weights.items()}
    if not any(mask.any() for mask in masks.values()):
        raise TrainingError(f"No weight is as large as {value}: everything would go.")
    return masks


def random(
    weights: Mapping[str, torch.Tensor], sparsity: float, seed: int = 0
) -> Masks:
    """Keep a random share 1 - ``sparsity`` of every layer: what a rule has to beat.

    Raises:
        TrainingError: a sparsity outside [0, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    draws = {
        name: torch.rand(weight.shape, generator=generator).to(weight.device)
        for name, weight in weights.items()
    }
    return {name: _largest(draw, sparsity) for name, draw in draws.items()}


def l1(weights: Mapping[str, torch.Tensor], sparsity: float) -> Masks:
    """Keep the largest magnitudes of each layer (Han et al. 2015, section 3).

    Raises:
        TrainingError: a sparsity outside [0, 1).
    """
    return {name: _largest(weight.abs(), sparsity) for name, weight in weights.items()}


def global_l1(weights: Mapping[str, torch.Tensor], sparsity: float) -> Masks:
    """Keep the largest magnitudes of all layers in one ranking.

    Layers of small weights lose more; one can lose all, and the network its voice.

    Raises:
        TrainingError: a sparsity outside [0, 1).
    """
    every = torch.cat([weight.abs().flatten() for weight in weights.values()])
    kept = _largest(every, sparsity).split([w.numel() for w in weights.values()])
    return {
        name: mask.view(weight.shape)
        for (name, weight), mask in zip(weights.items(), kept, strict=True)
    }


def structured(
    weights: Mapping[str, torch.Tensor], sparsity: float, n: float = 2, dim: int = 0
) -> Masks:
    """Keep whole slices along ``dim`` of the largest Ln norm, in each layer.

    Args:
        n: of the norm; 1, 2, ``math.inf`` …
        dim: 0 prunes outputs (rows, filters), 1 inputs (columns, channels).

    Raises:
        TrainingError: a sparsity outside [0, 1), a norm below 1, no such dimension.
    """
    if not n >= 1:
        raise TrainingError(f"n={n}: a norm needs n of 1 or more.")
    masks = {}
    for name, weight in weights.items():
        if not -weight.ndim <= dim < weight.ndim:
            raise TrainingError(f"dim={dim}: {name}.weight has {weight.ndim}.")
        rows = weight.movedim(dim, 0).flatten(1)  # (slices, the rest)
        kept = _largest(torch.linalg.vector_norm(rows, n, dim=1), sparsity)
        shape = [1] * weight.ndim
        shape[dim] = -1
        masks[name] = kept.view(shape).expand(weight.shape).clone()
    return masks


def two_four(weights: Mapping[str, torch.Tensor]) -> Masks:
    """Keep the two largest of every four neighbours along the inputs: 2:4 sparsity.

    The pattern that NVIDIA's sparse tensor cores run (Mishra et al. 2021,
    arXiv:2104.08378, section 3). A convolution's inputs are its channels times its
    kernel, in memory order.

    Raises:
        TrainingError: a layer whose number of inputs isn't a multiple of four.
    """
    masks = {}
    for name, weight in weights.items():
        if weight[0].numel() % 4:
            raise TrainingError(
                f"{name}.weight has {weight[0].numel()} inputs a row: 2:4 needs a "
                "multiple of 4. Leave this layer out of the weights."
            )
        fours = weight.abs().reshape(-1, 4)
        best = fours.argsort(dim=1, descending=True, stable=True)[:, :2]
        kept = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, best, True)
        masks[name] = kept.view(weight.shape)
    return masks


def cubic(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """Sparsity after ``step`` of ``steps``: fast at first, while much is superfluous.

    Zhu and Gupta 2017, arXiv:1710.01878, equation 1:
    s_t = s_f + (s_i - s_f)·(1 - t/n)³.

    Raises:
        TrainingError: sparsities that aren't 0 <= initial <= final < 1, no steps.
    """
    if not 0 <= initial <= final < 1:
        raise TrainingError(f"{initial} to {final}: sparsities grow within [0, 1).")
    if steps < 1 or step < 0:
        raise TrainingError(f"step {step} of {steps}: use 0 to 1 or more steps.")
    left = 1 - min(1.0, step / steps)
    return final + (initial - final) * left**3


def gradually(
    model: nn.Module,
    train: Callable[[nn.Module], object],
    final: float,
    steps: int,
    rule: Callable[[Mapping[str, torch.Tensor], float], Masks] = l1,
) -> list[float]:
    """Prune a little, train a little, ``steps`` times, in place; ``cubic`` sparsities.

    Args:
        train: what repairs the model after every cut.
        rule: of this module, from weights and sparsity to masks. Zeros are its
            smallest weights, so that a cut keeps those before it.

    Returns:
        The share of zeros after every step.

    Raises:
        TrainingError: as ``cubic``, ``rule`` and ``apply``; training changed a zero.
    """
    reached = []
    for step in range(1, steps + 1):
        cut = rule(masking.weights(model), cubic(step, steps, final))
        masking.apply(model, cut)
        before = masking.sparsity(model)[""]
        train(model)
        reached.append(masking.sparsity(model)[""])
        if reached[-1] < before - 1e-9:
            raise TrainingError(
                "Pruned weights came back: train() replaced the layers."
            )
    return reached


def _largest(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Mask of all but the round(sparsity·n) smallest; at least one stays."""
    if not 0 <= sparsity < 1:
        raise TrainingError(
            f"sparsity={sparsity}: use a share of zeros from 0 to below 1."
        )
    flat = scores.flatten()
    if torch.isnan(flat).any():
        raise TrainingError("NaN weights can't be ranked: look at the model.")
    gone = min(round(sparsity * len(flat)), len(flat) - 1)
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[flat.argsort(stable=True)[:gone]] = False
    return kept.view(scores.shape)
