"""Which weights to prune: criteria that make masks, and a schedule that prunes slowly.

A criterion is a function from ``prunable_weights(model)`` to boolean masks, layer by
layer, ``True`` where the weight stays.
The ranking is ``torch.nn.utils.prune``'s, which refuses sparsities outside [0, 1].
Masks make no dense runtime faster and no file smaller: ``remove_channels`` and
``remove_heads_and_neurons`` do.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.utils import prune

from ..core.errors import TrainingError
from .masks import Masks, mask_, prunable_weights

Weights = Mapping[str, torch.Tensor]


def threshold_masks(weights: Weights, value: float) -> Masks:
    """Keep the weights of at least ``value`` in magnitude."""
    return {name: weight.abs() >= value for name, weight in weights.items()}


def random_masks(weights: Weights, sparsity: float, seed: int = 0) -> Masks:
    """Keep a random fraction 1 - ``sparsity`` of every layer: the baseline to beat."""
    generator = torch.Generator().manual_seed(seed)
    draws = {
        name: torch.rand(weight.shape, generator=generator).to(weight.device)
        for name, weight in weights.items()
    }
    return l1_masks(draws, sparsity)


def l1_masks(weights: Weights, sparsity: float) -> Masks:
    """Keep the largest magnitudes of each layer (Han et al. 2015, section 3)."""
    criterion = prune.L1Unstructured(float(sparsity))
    return {name: _mask(criterion, weight) for name, weight in weights.items()}


def global_l1_masks(weights: Weights, sparsity: float) -> Masks:
    """Keep the largest magnitudes of all layers in one ranking.

    Layers of small weights lose more; one can lose all, and the network its output.
    """
    every = torch.cat([weight.flatten() for weight in weights.values()])
    kept = _mask(prune.L1Unstructured(float(sparsity)), every)
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {
        name: part.view(weight.shape)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


def row_masks(weights: Weights, sparsity: float) -> Masks:
    """Keep whole rows, or filters, of the largest L2 norm, in each layer."""
    criterion = prune.LnStructured(float(sparsity), n=2, dim=0)
    return {name: _mask(criterion, weight) for name, weight in weights.items()}


def two_four_masks(weights: Weights) -> Masks:
    """Keep the two largest of every four neighbours along the inputs: 2:4 sparsity.

    The pattern that NVIDIA's sparse tensor cores run (Mishra et al. 2021,
    arXiv:2104.08378, section 3). A convolution's inputs are its channels times its
    kernel, in memory order.

    Raises:
        TrainingError: a layer whose number of inputs isn't a multiple of four.
    """
    masks = {}
    for name, weight in weights.items():
        inputs = weight[0].numel()
        if inputs % 4:
            raise TrainingError(
                f"{name} has {inputs} inputs, and 2:4 needs a multiple of four: leave "
                "this layer out of the weights."
            )
        fours = weight.abs().reshape(-1, 4)
        best = fours.argsort(dim=1, descending=True, stable=True)[:, :2]
        kept = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, best, True)
        masks[name] = kept.view(weight.shape)
    return masks


def cubic_sparsity(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """Sparsity after ``step`` of ``steps``: grows fast at first, slowly at the end.

    Zhu and Gupta 2017, arXiv:1710.01878, equation 1:
    s_t = s_f + (s_i - s_f)·(1 - t/n)³.
    """
    remaining = 1 - min(1.0, step / steps)
    return final + (initial - final) * remaining**3


def prune_gradually_(
    model: nn.Module,
    train: Callable[[nn.Module], object],
    final: float,
    steps: int,
    criterion: Callable[[Weights, float], Masks],
) -> nn.Module:
    """Prune a little, train a little, ``steps`` times, as ``cubic_sparsity`` says.

    Args:
        train: trains the model in place after every cut.
        criterion: from weights and a sparsity to masks. Weights that are zero already
            are the smallest, so they stay pruned.
    """
    for step in range(1, steps + 1):
        target = cubic_sparsity(step, steps, final)
        mask_(model, criterion(prunable_weights(model), target))
        train(model)
    return model


def _mask(criterion: prune.BasePruningMethod, weight: torch.Tensor) -> torch.Tensor:
    return criterion.compute_mask(weight, torch.ones_like(weight)).bool()
