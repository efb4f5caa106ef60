"""Masks, their rules and schedules, against torch.nn.utils.prune."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from microbudget.core.errors import TrainingError
from microbudget.pruning import criteria
from microbudget.pruning import masks as masking
from microbudget.training import loop

SHARES = st.floats(0, 0.95)


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


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def theirs(method, model, **options):
    """What torch.nn.utils.prune keeps, layer by layer."""
    model, found = copy.deepcopy(model), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            method(module, "weight", **options)
            found[name] = module.weight_mask.bool()
    return found


def assert_same(masks, others):
    assert masks.keys() == others.keys()
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, others[name]), name


def assert_same_but_ties(masks, others, weights):
    """As many are kept; of several of one size at the border, either may go."""
    assert masks.keys() == others.keys() == weights.keys()
    assert all(mask.dtype == torch.bool for mask in masks.values())
    torn = [w.abs()[masks[name] != others[name]] for name, w in weights.items()]
    assert len(torch.cat(torn).unique()) <= 1
    ours, theirs = (sum(int(m.sum()) for m in x.values()) for x in (masks, others))
    assert ours == theirs


@given(share=SHARES, seed=st.integers(0, 50))
@example(share=0.8359375, seed=40)  # two weights of one size at the border
def test_l1_is_torchs(share, seed):
    model = network(seed)
    expected = theirs(prune.l1_unstructured, model, amount=share)
    weights = masking.weights(model)
    masks = criteria.l1(weights, share)
    assert masks.keys() == expected.keys()
    for name, weight in weights.items():
        own = {name: masks[name]}, {name: expected[name]}, {name: weight}
        assert_same_but_ties(*own)


@given(share=SHARES, seed=st.integers(0, 50))
def test_global_l1_is_torchs(share, seed):
    model = network(seed)
    layers = {n: m for n, m in model.named_modules() if n in ("0", "5", "7")}
    weights = {name: weight.clone() for name, weight in masking.weights(model).items()}
    ours = criteria.global_l1(weights, share)
    prune.global_unstructured(
        [(m, "weight") for m in layers.values()], prune.L1Unstructured, amount=share
    )
    expected = {n: m.weight_mask.bool() for n, m in layers.items()}
    assert_same_but_ties(ours, expected, weights)


@pytest.mark.parametrize("n", [1, 2, math.inf])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_structured_is_torchs(n, dim, share):
    model = network(3)
    expected = theirs(prune.ln_structured, model, amount=share, n=n, dim=dim)
    assert_same(criteria.structured(masking.weights(model), share, n, dim), expected)


@given(share=SHARES, seed=st.integers(0, 1000))
def test_random_keeps_as_many_as_l1_but_others(share, seed):
    weights = masking.weights(network())
    drawn, ranked = criteria.random(weights, share, seed), criteria.l1(weights, share)
    for name, mask in drawn.items():
        assert mask.sum() == ranked[name].sum()
    again = criteria.random(weights, share, seed)
    assert_same(drawn, again)


@given(value=st.floats(0, 0.15))
def test_a_threshold_keeps_what_reaches_it(value):
    for name, mask in criteria.threshold(masking.weights(network()), value).items():
        weight = masking.weights(network())[name]
        assert torch.equal(mask, weight.abs() >= value)


@given(st.integers(0, 500))
def test_two_of_four_keep_the_larger_two(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 12, generator=generator)
    mask = criteria.two_four({"x": weight})["x"]
    fours = mask.view(-1, 4)
    assert (fours.sum(1) == 2).all()
    kept = (weight * mask).view(-1, 4).abs().sum(1)
    best = weight.abs().view(-1, 4).topk(2, dim=1).values.sum(1)
    torch.testing.assert_close(kept, best)


def test_two_of_four_breaks_ties_and_still_keeps_two():
    mask = criteria.two_four({"x": torch.ones(3, 8)})["x"]
    assert (mask.view(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_leaves_zeros_zero(optimizer):
    model = network()
    masks = criteria.l1(masking.weights(model), 0.6)
    masking.apply(model, masks)
    before = {n: w.clone() for n, w in masking.weights(model).items()}
    loop.fit(
        model,
        data(),
        loss,
        loop.TrainConfig(
            epochs=4, batch_size=8, lr=0.05, weight_decay=0.1, optimizer=optimizer
        ),
    )
    after = masking.weights(model)
    for name, mask in masks.items():
        assert (after[name][~mask] == 0).all()
        assert not torch.equal(after[name], before[name])  # it did learn


def test_permanent_zeros_compute_the_same_and_stay_in_the_file(tmp_path):
    model, (x, _) = network().eval(), data()
    masking.apply(model, criteria.global_l1(masking.weights(model), 0.5))
    masked = model(x)
    masking.make_permanent(model)
    assert torch.equal(model(x), masked)
    assert not masking.masks_of(model)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = network(9).eval()
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(fresh(x), masked)
    assert masking.sparsity(fresh) == masking.sparsity(model)


def test_a_copy_keeps_its_masks():
    model = masking.apply(network(), criteria.l1(masking.weights(network()), 0.5))
    model(data()[0]).sum().backward()
    twin = copy.deepcopy(model)
    loop.fit(twin, data(), loss, loop.TrainConfig(epochs=1, batch_size=8, lr=0.1))
    assert masking.sparsity(twin)[""] >= masking.sparsity(model)[""] - 1e-9


def test_two_masks_on_a_layer_are_both_obeyed():
    model, weights = network(), masking.weights(network())
    first, second = criteria.random(weights, 0.4, 1), criteria.random(weights, 0.4, 2)
    masking.apply(masking.apply(model, first), second)
    for name, mask in masking.masks_of(model).items():
        assert torch.equal(mask, first[name] & second[name])


def test_sparsity_is_counted():
    model = network()
    masking.apply(model, {"5": torch.arange(384).view(12, 32) >= 96})
    report = masking.sparsity(model)
    assert report["5"] == pytest.approx(0.25)
    assert report["0"] == 0
    assert report[""] == pytest.approx(96 / (216 + 384 + 48))


@given(final=st.floats(0, 0.99), start=st.floats(0, 1), steps=st.integers(1, 40))
def test_the_cubic_schedule_grows_from_start_to_end(final, start, steps):
    initial = start * final
    path = [criteria.cubic(t, steps, final, initial) for t in range(steps + 2)]
    assert path[0] == pytest.approx(initial)
    assert path[steps] == path[-1] == pytest.approx(final)
    gains = [b - a for a, b in itertools.pairwise(path)]
    assert all(gain >= -1e-12 for gain in gains)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(gains))


def test_gradual_pruning_reaches_its_aim_and_loses_nothing_on_the_way():
    model, seen = network(), []

    def train(module):
        loop.fit(
            module, data(), loss, loop.TrainConfig(epochs=1, batch_size=8, lr=0.01)
        )
        seen.append(masking.masks_of(module))

    reached = criteria.gradually(model, train, 0.8, steps=3)
    wanted = [criteria.cubic(t, 3, 0.8) for t in (1, 2, 3)]
    assert reached == pytest.approx(wanted, abs=0.01)
    for earlier, later in itertools.pairwise(seen):
        for name, mask in later.items():
            assert not (mask & ~earlier[name]).any()


def test_training_that_brings_weights_back_is_noticed():
    with pytest.raises(TrainingError, match="came back"):
        criteria.gradually(network(), masking_undone, 0.5, steps=1)


def masking_undone(model):
    masking.make_permanent(model)
    with torch.no_grad():
        model[5].weight.add_(1)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, math.nan])
def test_shares_out_of_range_are_refused(share):
    weights = masking.weights(network())
    for rule in (criteria.l1, criteria.global_l1, criteria.random, criteria.structured):
        with pytest.raises(TrainingError, match="sparsity"):
            rule(weights, share)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: criteria.threshold(w, -1), "threshold"),
        (lambda w: criteria.threshold(w, 1e9), "everything would go"),
        (lambda w: criteria.threshold(w, math.nan), "threshold"),
        (lambda w: criteria.structured(w, 0.5, n=0.5), "norm"),
        (lambda w: criteria.structured(w, 0.5, dim=2), "dim=2"),
        (lambda w: criteria.two_four({"x": torch.ones(2, 6)}), "multiple of 4"),
        (lambda w: criteria.cubic(1, 0, 0.5), "steps"),
        (lambda w: criteria.cubic(1, 3, 0.5, 0.6), "sparsities"),
        (lambda w: criteria.cubic(1, 3, 1.0), "sparsities"),
        (lambda w: masking.weights(nn.ReLU()), "no linear"),
    ],
)
def test_what_has_no_meaning_is_refused(call, message):
    with pytest.raises(TrainingError, match=message):
        call(masking.weights(network()))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"9": torch.ones(4, 12, dtype=torch.bool)}, "no linear"),
        ({"1": torch.ones(8, dtype=torch.bool)}, "no linear"),
        ({"7": torch.ones(4, 11, dtype=torch.bool)}, "shape"),
        ({"7": torch.ones(4, 12)}, "boolean"),
        ({"7": torch.zeros(4, 12, dtype=torch.bool)}, "no weight at all"),
    ],
)
def test_masks_that_do_not_fit_leave_the_model_alone(masks, message):
    model = network()
    good = {"5": torch.ones(12, 32, dtype=torch.bool)}
    with pytest.raises(TrainingError, match=message):
        masking.apply(model, good | masks)
    assert not masking.masks_of(model)


def test_a_mask_that_leaves_nothing_beside_the_one_there_is_refused():
    model, half = network(), torch.arange(12) < 6
    masking.apply(model, {"7": half.expand(4, 12)})
    with pytest.raises(TrainingError, match="no weight at all"):
        masking.apply(model, {"7": ~half.expand(4, 12)})


def test_nan_weights_are_refused():
    model = network()
    with torch.no_grad():
        model[7].weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match="NaN"):
        masking.weights(model)
    with pytest.raises(TrainingError, match="NaN"):
        criteria.l1({"7": model[7].weight}, 0.5)


def test_another_parametrisation_is_not_taken_for_a_mask():
    model = network()
    nn.utils.parametrizations.weight_norm(model[7])
    with pytest.raises(TrainingError, match="take that off"):
        masking.apply(model, {"7": torch.ones(4, 12, dtype=torch.bool)})
