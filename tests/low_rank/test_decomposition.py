"""Low rank: against numpy and scikit-learn, and ranks by budget against brute force."""

import itertools

import numpy as np
import pytest
import sentences
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD
from torch import nn

from microbudget import low_rank
from microbudget.core import modules
from microbudget.core.errors import MicrobudgetError
from microbudget.low_rank.decomposition import Decomposition

few = settings(max_examples=25)
sizes = st.integers(1, 9)
seeds = st.integers(0, 10_000)


def matrix(out, into, seed, rank=None):
    torch.manual_seed(seed)
    if rank is None:
        return torch.randn(out, into)
    return torch.randn(out, rank) @ torch.randn(rank, into)


def net(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 20, bias=bias), nn.GELU(), nn.Linear(20, 16, bias=bias),
        nn.GELU(), nn.Linear(16, 3),
    ).eval()  # fmt: skip


def product(module):
    return (module[1].weight.double() @ module[0].weight.double()).detach()


@few
@given(sizes, sizes, seeds, st.data())
def test_the_error_is_the_tail_of_the_singular_values(out, into, seed, data):
    """Eckart and Young 1936, with numpy's singular values."""
    w = matrix(out, into, seed)
    rank = data.draw(st.integers(1, min(out, into)))
    linear = nn.Linear(into, out)
    linear.weight.data.copy_(w)
    found = low_rank.svd(w)
    values = np.linalg.svd(w.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.values, values, atol=1e-9)
    tail = float(np.sqrt((values[rank:] ** 2).sum()))
    assert found.error(rank) == pytest.approx(tail, abs=1e-9)
    cut = found.truncate(rank, linear)
    measured = float((w.double() - product(cut)).norm())
    assert measured == pytest.approx(tail, abs=1e-5 * float(w.norm()))
    assert cut.rank == rank
    kept = float(found.energy[rank])
    assert kept == pytest.approx(1 - tail**2 / (values**2).sum(), abs=1e-9)
    whole = found.truncate(min(out, into), linear)
    torch.testing.assert_close(product(whole).float(), w, atol=1e-5, rtol=1e-5)


@few
@given(sizes, sizes, seeds, st.booleans())
def test_the_bias_is_kept(out, into, seed, bias):
    torch.manual_seed(seed)
    linear = nn.Linear(into, out, bias=bias)
    cut = low_rank.svd(linear.weight).truncate(1, linear)
    assert cut[0].bias is None
    if not bias:
        assert cut[1].bias is None
    else:
        assert torch.equal(cut[1].bias, linear.bias)
        zeros = torch.zeros(3, into)
        torch.testing.assert_close(cut(zeros), linear(zeros))
    x = torch.randn(4, 2, into)
    expected = x @ product(cut).float().T + (linear.bias if bias else 0)
    torch.testing.assert_close(cut(x), expected, atol=1e-5, rtol=1e-4)


def test_equal_to_scikit_learn():
    w = matrix(40, 25, 0)
    cut = low_rank.svd(w).truncate(6, nn.Linear(25, 40))
    theirs = TruncatedSVD(6, algorithm="arpack", random_state=0).fit(w.numpy())
    rebuilt = theirs.inverse_transform(theirs.transform(w.numpy()))
    np.testing.assert_allclose(product(cut), rebuilt, atol=1e-4)


def test_a_layer_of_low_rank_loses_nothing_at_that_rank():
    w = matrix(12, 10, 0, rank=3)
    found = low_rank.svd(w)
    assert found.error(3) < 1e-4 * float(w.norm())
    zero = low_rank.svd(torch.zeros(4, 3)).truncate(2, nn.Linear(3, 4))
    assert torch.equal(product(zero), torch.zeros(4, 3, dtype=torch.float64))
    assert torch.isfinite(zero[0].weight).all()


@few
@given(st.integers(1, 60), st.integers(1, 60))
def test_break_even(out, into):
    rank = low_rank.break_even(out, into)
    assert rank * (out + into) < out * into <= (rank + 1) * (out + into)


def test_uniform_leaves_whole_what_would_grow():
    model = net()
    found = low_rank.decompose(model)
    assert low_rank.uniform_ranks(found, 2) == {"0": 2, "2": 2, "4": 2}
    assert low_rank.uniform_ranks(found, 7) == {"0": 7, "2": 7}
    for rank in (1, 2, 7, 50):
        ranks = low_rank.uniform_ranks(found, rank)
        small = low_rank.factorize(model, found, ranks)
        counted = sum(p.numel() for n, p in small.named_parameters() if "weight" in n)
        assert counted == low_rank.count_weights(found, ranks)
        assert counted <= low_rank.count_weights(found, {})


def test_types_devices_modes_and_frozen_weights_are_kept():
    model = net().half().requires_grad_(False)
    found = low_rank.decompose(model)
    small = low_rank.factorize(model, found, {"2": 3})
    for parameter in small.parameters():
        assert parameter.dtype == torch.float16
        assert not parameter.requires_grad
    assert not small[2].training
    assert type(model[2]) is nn.Linear  # the model itself stays as it was


def test_a_sentence_encoder_is_factorized_trained_and_saved(tmp_path):
    whole = sentences.classifier()
    found = low_rank.decompose(whole)
    assert len(found) == 13  # six a layer and the head
    ranks = low_rank.uniform_ranks(found, 8)
    assert "heads.task" not in ranks
    model = low_rank.factorize(whole, found, ranks | {"heads.task": 1})
    assert model.heads["task"].out_features == 2
    data = sentences.sentences()
    ids, mask, labels = data.collate([data[i] for i in range(len(data))])
    nn.functional.cross_entropy(model(ids, mask), labels).backward()
    assert all(p.grad is not None for p in model.heads.parameters())
    model.eval()
    path = low_rank.save(model, tmp_path / "small.safetensors")
    assert path.stat().st_size < sum(t.nbytes for t in whole.state_dict().values())
    back = low_rank.load(path, sentences.classifier(seed=3))
    assert torch.equal(back.eval()(ids, mask), model(ids, mask))


# --- ranks by budget


def spectrum(out, into, values):
    """A decomposition with these singular values; the directions don't matter."""
    n = min(out, into)
    values = torch.tensor(sorted(values, reverse=True)[:n], dtype=torch.float64)
    eye = torch.eye(max(out, into), dtype=torch.float64)
    return Decomposition(
        down=values[:, None] * eye[:n, :into], up=eye[:out, :n], values=values
    )


shapes = st.tuples(st.integers(2, 7), st.integers(2, 7))


@st.composite
def spectra(draw):
    found = {}
    for i in range(draw(st.integers(1, 3))):
        out, into = draw(shapes)
        n = min(out, into)
        values = draw(st.lists(st.floats(0.05, 4), min_size=n, max_size=n))
        found[f"layer{i}"] = spectrum(out, into, values)
    return found


def energy(found, ranks):
    """The sum of the fractions of energy that the layers keep."""
    return sum(float(d.energy[ranks.get(name, -1)]) for name, d in found.items())


def states(found):
    """Every way to give the layers ranks (None: whole): numbers and energy."""
    options = [
        [*range(1, low_rank.break_even(*d.shape) + 1), None] for d in found.values()
    ]
    for choice in itertools.product(*options):
        named = zip(found, choice, strict=True)
        ranks = {name: rank for name, rank in named if rank is not None}
        yield low_rank.count_weights(found, ranks), energy(found, ranks), ranks


@settings(max_examples=60)
@given(spectra(), st.floats(0, 1))
def test_the_budget_is_respected_and_spent(found, fraction):
    least = low_rank.count_weights(found, low_rank.uniform_ranks(found, 1))
    budget = int(least + fraction * (low_rank.count_weights(found, {}) - least))
    ranks = low_rank.ranks_by_budget(found, budget)
    left = budget - low_rank.count_weights(found, ranks)
    assert left >= 0
    for name, rank in ranks.items():  # no layer's next direction can be paid
        shape = found[name].shape
        assert rank == low_rank.break_even(*shape) or sum(shape) > left


@settings(max_examples=60)
@given(spectra(), st.floats(1e-3, 0.5))
def test_what_was_spent_was_spent_best(found, per_weight):
    """Everett 1963: the best of all choices (by brute force) at a price for a weight
    is the best that can be done with the weights that it takes.
    """
    weights, best, _ = max(states(found), key=lambda s: s[1] - per_weight * s[0])
    ranks = low_rank.ranks_by_budget(found, weights)
    assert energy(found, ranks) == pytest.approx(best, abs=1e-9)


def test_a_layer_too_expensive_to_keep_whole_does_not_eat_the_budget():
    """A flat layer's best offer, to stay whole, can't be paid: others are served."""
    found = {
        "flat": spectrum(40, 40, [1.0] * 40),
        "steep": spectrum(40, 40, [1.5**-i for i in range(40)]),
    }
    ranks = low_rank.ranks_by_budget(found, 80 * 10)
    assert ranks == {"flat": 6, "steep": 4}


def test_raw_energy_serves_the_louder_layer():
    values = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    found = {"a": spectrum(10, 10, values), "b": spectrum(10, 10, values)}
    even = low_rank.ranks_by_budget(found, 100)
    assert even["a"] + even["b"] == 5
    louder = {**found, "b": spectrum(10, 10, [30 * v for v in values])}
    assert low_rank.ranks_by_budget(louder, 100) == even
    ranks = low_rank.ranks_by_budget(louder, 100, normalize=False)
    assert ranks == {"a": 1, "b": 4}


def test_the_largest_and_the_smallest_budget():
    found = low_rank.decompose(net())
    everything = low_rank.count_weights(found, {})
    assert low_rank.ranks_by_budget(found, everything) == {}
    assert low_rank.ranks_by_budget(found, 87) == {"0": 1, "2": 1, "4": 1}
    with pytest.raises(MicrobudgetError, match=r"rank 1 everywhere takes 87\b"):
        low_rank.ranks_by_budget(found, 86)


# --- bad inputs


@pytest.mark.parametrize("rank", [0, 4, 2.0, None])
def test_a_rank_that_cannot_be_is_refused(rank):
    with pytest.raises(MicrobudgetError, match="from 1 to 3"):
        low_rank.svd(torch.randn(5, 3)).truncate(rank, nn.Linear(3, 5))


def test_what_is_no_linear_layer_is_refused():
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    tied[2].weight = tied[0].weight
    assert list(modules.named_linear_layers(tied)) == ["1"]
    attention = nn.MultiheadAttention(4, 2)  # reads out_proj.weight itself
    for model in (attention, nn.ReLU()):
        with pytest.raises(MicrobudgetError, match="no plain linear layer"):
            low_rank.decompose(model)
    with pytest.raises(MicrobudgetError, match="There is no 'nope' here"):
        low_rank.decompose(net(), ["nope"])
    alone = nn.Linear(4, 4)
    with pytest.raises(MicrobudgetError, match="put it into a Sequential"):
        low_rank.factorize(alone, low_rank.decompose(alone), {"": 1})
    alone.weight.data[0, 0] = float("inf")
    with pytest.raises(MicrobudgetError, match="NaN or infinity"):
        low_rank.decompose(alone)


def test_ranks_that_fit_no_layer_are_refused():
    model = net()
    found = low_rank.decompose(model)
    for ranks in ({"0": 3, "2": 99}, {"0": 3, "nope": 1}, {"0": 3, "1": 1}):
        with pytest.raises(MicrobudgetError):
            low_rank.factorize(model, found, ranks)
    once = low_rank.factorize(model, found, {"0": 3})
    with pytest.raises(MicrobudgetError, match="factorized before"):
        low_rank.factorize(once, found, {"0": 2})


# --- on disk


@pytest.mark.parametrize("bias", [True, False])
def test_a_saved_model_comes_back_with_its_ranks(tmp_path, bias):
    model, x = net(bias=bias), torch.randn(3, 12)
    found = low_rank.decompose(model)
    small = low_rank.factorize(model, found, {"0": 3, "2": 5})
    path = low_rank.save(small, tmp_path / "small.safetensors", note="mine")
    other = net(seed=1, bias=bias)
    before = other(x)
    back = low_rank.load(path, other)
    assert [back[i].rank for i in (0, 2)] == [3, 5]
    assert back.metadata == {"note": "mine"}
    assert torch.equal(back(x), small(x))
    assert torch.equal(other(x), before)  # the given model stays as it is


def test_files_that_do_not_fit_are_refused(tmp_path):
    model = net()
    small = low_rank.factorize(model, low_rank.decompose(model), {"0": 3})
    path = low_rank.save(small, tmp_path / "small.safetensors")
    narrow = nn.Sequential(nn.Linear(12, 21), nn.GELU(), nn.Linear(21, 16))
    for other in (narrow, nn.Sequential(nn.ReLU(), nn.Linear(12, 20)), small):
        with pytest.raises(MicrobudgetError, match="build the architecture"):
            low_rank.load(path, other)
    with pytest.raises(MicrobudgetError, match="There is no file"):
        low_rank.load(tmp_path / "absent", model)
