"""The lottery ticket hypothesis: is a pruned network special, or its first weights?

Frankle and Carbin 2019 (arXiv:1803.03635): train a network, prune its least weights,
put those that are left back to what they were *before* training, train again …
The hypothesis: this small network, its **ticket**, trains as well as the whole one did,
and better than one of the same shape whose weights are drawn anew.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..core.errors import TrainingError
from . import criteria
from . import masks as masking
from .masks import Masks

Train = Callable[[nn.Module], object]


@dataclass(frozen=True)
class Ticket:
    """A mask with the weights that belong to it.

    Attributes:
        density: the share of prunable weights that it keeps.
        start: the network's state before training, masks not applied; shared by all
            tickets of a search.
    """

    density: float
    masks: Masks
    start: Mapping[str, torch.Tensor]


def search(
    model: nn.Module,
    train: Train,
    *,
    rounds: int = 4,
    cut: float = 0.5,
    last_cut: float | None = None,
    early: Train | None = None,
) -> list[Ticket]:
    """Iterative magnitude pruning with rewinding; section 2 and appendix B.

    Args:
        model: as initialised; unchanged afterwards.
        train: trains a model in place, always alike.
        cut: share of the remaining weights that each round prunes, layer by layer.
        last_cut: the same for the last layer; half of ``cut``, as in the paper.
        early: a first bit of training, to whose end it rewinds (Frankle et al. 2019,
            arXiv:1903.01611); none: to the initial weights.

    Returns:
        One ticket a round, from dense to sparse.

    Raises:
        TrainingError: a cut outside (0, 1), no rounds.
    """
    last_cut = cut / 2 if last_cut is None else last_cut
    if not (0 < cut < 1 and 0 <= last_cut < 1) or rounds < 1:
        raise TrainingError(
            f"cut={cut}, last_cut={last_cut}, rounds={rounds}: prune a share between 0 "
            "and 1, once at least."
        )
    work = _copy(model)
    if early is not None:
        early(work)
    start = {name: t.detach().clone() for name, t in work.state_dict().items()}
    layers = masking.weights(model)
    *_, last = layers
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in layers.items()}
    tickets = []
    for _ in range(rounds):
        train(masking.apply(work, masks))
        trained = masking.weights(work)
        for name, weight in trained.items():
            left = masks[name].float().mean().item()
            left *= 1 - (last_cut if name == last else cut)
            largest = criteria.l1({name: weight}, 1 - left)[name]
            masks[name] = masks[name] & largest.to(masks[name].device)
        kept = sum(int(mask.sum()) for mask in masks.values())
        density = kept / sum(mask.numel() for mask in masks.values())
        tickets.append(Ticket(density, dict(masks), start))
        work = _copy(model)
        work.load_state_dict(start)
    return tickets


def rewound(model: nn.Module, ticket: Ticket) -> nn.Module:
    """A copy with the ticket's masks on its *own* first weights."""
    model = _copy(model)
    model.load_state_dict(dict(ticket.start))
    return masking.apply(model, ticket.masks)


def redrawn(model: nn.Module, ticket: Ticket, seed: int) -> nn.Module:
    """A copy with the ticket's masks on weights drawn anew.

    Every layer that has ``reset_parameters`` draws its weights as torch does.
    """
    model = _copy(model)
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return masking.apply(model, ticket.masks)


def shuffled(model: nn.Module, ticket: Ticket, seed: int) -> nn.Module:
    """A copy with the ticket's first weights, but each layer's mask in random places.

    As many weights in every layer: is it which ones, or only how many?
    """
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, mask in ticket.masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        masks[name] = mask.flatten()[order].view(mask.shape)
    return rewound(model, Ticket(ticket.density, masks, ticket.start))


def _copy(model: nn.Module) -> nn.Module:
    if masking.masks_of(model):
        raise TrainingError("Search with a model that has no masks on yet.")
    return copy.deepcopy(model)
