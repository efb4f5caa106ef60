"""Masks, their criteria and schedules, against torch.nn.utils.prune."""

import copy
import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from microbudget.core.errors import TrainingError
from microbudget.pruning import criteria, masks
from microbudget.training import loop

FRACTIONS = st.floats(0, 0.95)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(),
        nn.Linear(12, 4),
    )  # fmt: skip


def data(n=24):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, 6, 6, generator=generator)
    return x, torch.arange(n) % 4


def train(model, **options):
    def loss(module, batch):
        return F.cross_entropy(module(batch[0]), batch[1])

    loop.fit(model, data(), loss, loop.TrainConfig(batch_size=8, **options))


def of_torch(method, model, **options):
    """What torch.nn.utils.prune keeps, layer by layer."""
    model, found = copy.deepcopy(model), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            method(module, "weight", **options)
            found[name] = module.weight_mask.bool()
    return found


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, mask in ours.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, theirs[name]), name


@given(fraction=FRACTIONS, seed=st.integers(0, 50))
@example(fraction=0.8359375, seed=40)  # two weights of one size at the border
def test_l1_is_torchs(fraction, seed):
    model = network(seed)
    expected = of_torch(prune.l1_unstructured, model, amount=fraction)
    assert_same(criteria.l1_masks(masks.prunable_weights(model), fraction), expected)


@given(fraction=FRACTIONS, seed=st.integers(0, 50))
def test_global_l1_is_torchs(fraction, seed):
    model = network(seed)
    ours = criteria.global_l1_masks(masks.prunable_weights(model), fraction)
    layers = {name: model.get_submodule(name) for name in ours}
    parameters = [(layer, "weight") for layer in layers.values()]
    prune.global_unstructured(parameters, prune.L1Unstructured, amount=fraction)
    assert_same(ours, {n: layer.weight_mask.bool() for n, layer in layers.items()})


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5])
def test_rows_are_torchs(fraction):
    model = network(3)
    expected = of_torch(prune.ln_structured, model, amount=fraction, n=2, dim=0)
    assert_same(criteria.row_masks(masks.prunable_weights(model), fraction), expected)


@given(fraction=FRACTIONS, seed=st.integers(0, 1000))
def test_random_keeps_as_many_as_l1_and_repeats_itself(fraction, seed):
    weights = masks.prunable_weights(network())
    drawn = criteria.random_masks(weights, fraction, seed)
    ranked = criteria.l1_masks(weights, fraction)
    assert all(mask.sum() == ranked[name].sum() for name, mask in drawn.items())
    assert_same(drawn, criteria.random_masks(weights, fraction, seed))


@given(st.integers(0, 500), st.booleans())
def test_two_of_four_keep_the_larger_two(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 12, generator=generator)
    weight = weight.sign() if ties else weight
    mask = criteria.two_four_masks({"x": weight})["x"]
    assert (mask.view(-1, 4).sum(1) == 2).all()
    kept = (weight * mask).view(-1, 4).abs().sum(1)
    best = weight.abs().view(-1, 4).topk(2, dim=1).values.sum(1)
    torch.testing.assert_close(kept, best)


def test_two_of_four_needs_a_multiple_of_four():
    with pytest.raises(TrainingError, match="multiple of four"):
        criteria.two_four_masks({"x": torch.ones(2, 6)})


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("optimizer", [None, sgd])
def test_training_leaves_zeros_zero(optimizer):
    model = network()
    pruned = criteria.l1_masks(masks.prunable_weights(model), 0.6)
    masks.mask_(model, pruned)
    before = {n: w.clone() for n, w in masks.prunable_weights(model).items()}
    train(model, epochs=4, lr=0.05, weight_decay=0.1, optimizer=optimizer)
    after = masks.prunable_weights(model)
    for name, mask in pruned.items():
        assert (after[name][~mask] == 0).all()
        assert not torch.equal(after[name], before[name])  # it did train


def test_permanent_zeros_compute_the_same_and_stay_in_the_state():
    model, (x, _) = network().eval(), data()
    weights = masks.prunable_weights(model)
    masks.mask_(model, criteria.global_l1_masks(weights, 0.5))
    masked = model(x)
    masks.make_permanent_(model)
    assert torch.equal(model(x), masked)
    fresh = network(9).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), masked)
    assert masks.sparsity(fresh) == pytest.approx(0.5, abs=0.001)


def test_a_copy_keeps_its_masks():
    model = network()
    masks.mask_(model, criteria.l1_masks(masks.prunable_weights(model), 0.5))
    model(data()[0]).sum().backward()
    twin = copy.deepcopy(model)
    train(twin, epochs=1, lr=0.1)
    assert masks.sparsity(twin) >= masks.sparsity(model) - 1e-9


def test_two_masks_on_a_layer_both_hold():
    model = network()
    weights = masks.prunable_weights(model)
    first, second = (criteria.random_masks(weights, 0.4, seed) for seed in (1, 2))
    masks.mask_(masks.mask_(model, first), second)
    both = {n: first[n] & second[n] for n in first}
    assert_same({n: w != 0 for n, w in masks.prunable_weights(model).items()}, both)


@given(final=st.floats(0, 0.99), start=st.floats(0, 1), steps=st.integers(1, 40))
def test_the_cubic_schedule_grows_from_start_to_end(final, start, steps):
    initial = start * final
    path = [criteria.cubic_sparsity(t, steps, final, initial) for t in range(steps + 2)]
    assert path[0] == pytest.approx(initial)
    assert path[steps] == path[-1] == pytest.approx(final)
    gains = [b - a for a, b in itertools.pairwise(path)]
    assert all(gain >= -1e-12 for gain in gains)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(gains))


def test_gradual_pruning_reaches_its_target_and_brings_nothing_back():
    model, seen, reached = network(), [], []

    def train_and_note(module):
        train(module, epochs=1, lr=0.01)
        seen.append({n: w.clone() for n, w in masks.prunable_weights(module).items()})
        reached.append(masks.sparsity(module))

    criteria.prune_gradually_(model, train_and_note, 0.8, 3, criteria.l1_masks)
    wanted = [criteria.cubic_sparsity(t, 3, 0.8) for t in (1, 2, 3)]
    assert reached == pytest.approx(wanted, abs=0.01)
    for earlier, later in itertools.pairwise(seen):
        for name, weight in later.items():
            assert (weight[earlier[name] == 0] == 0).all()
