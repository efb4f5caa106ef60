"""The lottery ticket hypothesis: is a pruned network special, or its first weights?

Frankle and Carbin 2019 (arXiv:1803.03635): train a network, prune its smallest weights,
reset the remaining ones to their values *before* training, train again …
The hypothesis: this small network, its **ticket**, trains as well as the whole one did,
and better than one of the same shape whose weights are drawn anew.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .criteria import l1_masks
from .masks import Masks, mask_, prunable_weights


@dataclass(frozen=True)
class Ticket:
    """The masks of a network, and the fraction of prunable weights that they keep."""

    density: float
    masks: Masks


def find_tickets(
    model: nn.Module,
    train: Callable[[nn.Module], object],
    *,
    rounds: int,
    fraction: float,
) -> list[Ticket]:
    """Iterative magnitude pruning with rewinding; section 2 and appendix B.

    Args:
        model: as initialised, or trained for a first few steps, to whose end it then
            rewinds (Frankle et al. 2019, arXiv:1903.01611); unchanged afterwards.
        train: trains a model in place, the same way each time.
        fraction: of the remaining weights that each round prunes, layer by layer; half
            of it in the last layer, as in the paper.

    Returns:
        One ticket a round, from dense to sparse.
    """
    layers = prunable_weights(model)
    *_, last = layers
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in layers.items()}
    tickets = []
    for _ in range(rounds):
        work = mask_(copy.deepcopy(model), masks)
        train(work)
        for name, weight in prunable_weights(work).items():
            remaining = masks[name].float().mean().item()
            remaining *= 1 - (fraction / 2 if name == last else fraction)
            largest = l1_masks({name: weight}, 1 - remaining)[name]
            masks[name] = masks[name] & largest.to(masks[name].device)
        kept = sum(int(mask.sum()) for mask in masks.values())
        density = kept / sum(mask.numel() for mask in masks.values())
        tickets.append(Ticket(density, dict(masks)))
    return tickets


def rewound(model: nn.Module, ticket: Ticket) -> nn.Module:
    """A copy of the network that ``find_tickets`` was given, with a ticket's masks."""
    return mask_(copy.deepcopy(model), ticket.masks)


def redrawn(model: nn.Module, ticket: Ticket, seed: int) -> nn.Module:
    """A copy with the ticket's masks on weights drawn anew, as torch draws them."""
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return mask_(model, ticket.masks)


def shuffled(model: nn.Module, ticket: Ticket, seed: int) -> nn.Module:
    """Like ``rewound``, but with each layer's mask in random positions.

    Every layer keeps as many weights as in the ticket, so this shows whether it matters
    which ones stay, or only how many.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, mask in ticket.masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        masks[name] = mask.flatten()[order].view(mask.shape)
    return mask_(copy.deepcopy(model), masks)
