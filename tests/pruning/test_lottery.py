"""Lottery tickets on a network of a few hundred weights."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from microbudget.pruning import lottery
from microbudget.pruning.masks import prunable_weights, sparsity
from microbudget.training import loop


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(),
                         nn.Linear(10, 3))  # fmt: skip


X = torch.randn(30, 6, generator=torch.Generator().manual_seed(5))
DATA = (X, (X[:, 0] > 0).long() + (X[:, 1] > 0).long())


def train(model):
    return loop.fit(
        model,
        DATA,
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        loop.TrainConfig(epochs=3, batch_size=10, lr=0.02),
    )


@pytest.fixture(scope="module")
def found():
    return lottery.find_tickets(network(), train, rounds=3, fraction=0.5)


def test_each_ticket_lies_within_the_one_before(found):
    for wide, narrow in itertools.pairwise(found):
        assert narrow.density < wide.density
        for name, mask in narrow.masks.items():
            assert not (mask & ~wide.masks[name]).any()


def test_densities_follow_the_cut_and_the_last_layer_loses_half_as_much(found):
    for i, ticket in enumerate(found, start=1):
        masks = ticket.masks
        assert masks["0"].float().mean() == pytest.approx(0.5**i, abs=0.02)
        assert masks["4"].float().mean() == pytest.approx(0.75**i, abs=0.03)
        kept = sum(int(m.sum()) for m in masks.values())
        assert ticket.density == pytest.approx(kept / (96 + 160 + 30))


def test_rewinding_gives_the_first_weights_back(found):
    model, ticket = network(), found[-1]
    first = prunable_weights(model)
    for name, weight in prunable_weights(lottery.rewound(model, ticket)).items():
        torch.testing.assert_close(weight, first[name] * ticket.masks[name])
    assert sparsity(model) == 0  # the model itself is untouched


def test_redrawn_weights_are_others_under_the_same_mask(found):
    ticket, model = found[-1], network()
    again = prunable_weights(lottery.redrawn(model, ticket, seed=7))
    same = prunable_weights(lottery.redrawn(model, ticket, seed=7))
    for name, weight in again.items():
        assert torch.equal(weight, same[name])
        assert torch.equal(weight != 0, ticket.masks[name])
        kept = ticket.masks[name]
        assert not torch.equal(weight[kept], prunable_weights(model)[name][kept])


def test_shuffled_masks_keep_as_many_in_every_layer(found):
    ticket = found[-1]
    weights = prunable_weights(lottery.shuffled(network(), ticket, seed=1))
    masks = {name: weight != 0 for name, weight in weights.items()}
    for name, mask in masks.items():
        assert mask.sum() == ticket.masks[name].sum()
    assert any(not torch.equal(m, ticket.masks[n]) for n, m in masks.items())
