"""Low rank: against numpy and scikit-learn, and ranks by budget against brute force."""

import copy
import itertools

import numpy as np
import pytest
import sentences
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.decomposition import TruncatedSVD
from torch import nn

from microbudget.core import modules
from microbudget.core.errors import MicrobudgetError
from microbudget.finetuning import methods
from microbudget.low_rank import budget as rank_budget
from microbudget.low_rank import checkpoint, factorize
from microbudget.training import text_classifier

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
    found = factorize.svd(w)
    values = np.linalg.svd(w.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.values, values, atol=1e-9)
    tail = float(np.sqrt((values[rank:] ** 2).sum()))
    assert found.error(rank) == pytest.approx(tail, abs=1e-9)
    cut = found.cut(rank, linear)
    measured = float((w.double() - product(cut)).norm())
    assert measured == pytest.approx(tail, abs=1e-5 * float(w.norm()))
    assert cut.rank == rank
    kept = float(found.energy[rank])
    assert kept == pytest.approx(1 - tail**2 / (values**2).sum(), abs=1e-9)


@few
@given(sizes, sizes, seeds)
def test_more_rank_never_hurts_and_full_rank_is_exact(out, into, seed):
    w = matrix(out, into, seed)
    found = factorize.svd(w)
    energies = found.energy
    assert energies[0] == 0
    assert float(energies[-1]) == pytest.approx(1)
    assert (energies.diff() >= 0).all()
    whole = found.cut(min(out, into), nn.Linear(into, out))
    torch.testing.assert_close(product(whole).float(), w, atol=1e-5, rtol=1e-5)


@few
@given(st.integers(2, 9), st.integers(2, 9), seeds)
def test_no_random_map_of_that_rank_is_nearer(out, into, seed):
    w = matrix(out, into, seed).double()
    rank = min(out, into) - 1
    best = factorize.svd(w).error(rank)
    for _ in range(20):
        down = torch.randn(rank, into, dtype=torch.float64)
        up = torch.linalg.lstsq(down.T, w.T).solution.T  # the best for this down
        assert float((w - up @ down).norm()) >= best - 1e-9


@few
@given(sizes, sizes, seeds, st.booleans())
def test_the_bias_is_kept(out, into, seed, bias):
    torch.manual_seed(seed)
    linear = nn.Linear(into, out, bias=bias)
    cut = factorize.svd(linear.weight).cut(1, linear)
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
    cut = factorize.svd(w).cut(6, nn.Linear(25, 40))
    theirs = TruncatedSVD(6, algorithm="arpack", random_state=0).fit(w.numpy())
    rebuilt = theirs.inverse_transform(theirs.transform(w.numpy()))
    np.testing.assert_allclose(product(cut), rebuilt, atol=1e-4)


def test_both_halves_share_a_directions_length():
    cut = factorize.svd(matrix(8, 5, 0)).cut(3, nn.Linear(5, 8))
    torch.testing.assert_close(cut[0].weight.norm(dim=1), cut[1].weight.norm(dim=0))


def test_a_map_of_low_rank_loses_nothing_at_that_rank():
    w = matrix(12, 10, 0, rank=3)
    found = factorize.svd(w)
    assert found.error(3) < 1e-4 * float(w.norm())
    zero = factorize.svd(torch.zeros(4, 3)).cut(2, nn.Linear(3, 4))
    assert torch.equal(product(zero), torch.zeros(4, 3, dtype=torch.float64))
    assert torch.isfinite(zero[0].weight).all()


@few
@given(st.integers(1, 60), st.integers(1, 60))
def test_break_even(out, into):
    rank = factorize.break_even(out, into)
    assert rank * (out + into) < out * into <= (rank + 1) * (out + into)


def test_a_network_at_full_rank_answers_the_same_and_merges_back():
    model = net()
    x = torch.randn(7, 12)
    before = model(x)
    found = factorize.decompose(model)
    full = {name: len(d.values) for name, d in found.items()}
    factorize.factorize(model, found, full)
    assert list(factorize.factored(model)) == ["0", "2", "4"]
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
    factorize.merge(model)
    assert not factorize.factored(model)
    assert [type(m) for m in model[::2]] == [nn.Linear] * 3
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)


def test_merging_is_exact_at_any_rank():
    model = net()
    found = factorize.decompose(model)
    factorize.factorize(model, found, {"0": 4, "2": 2})
    x = torch.randn(7, 12)
    before = model(x)
    torch.testing.assert_close(factorize.merge(model)(x), before)


def test_uniform_leaves_whole_what_would_grow():
    model = net()
    found = factorize.decompose(model)
    assert factorize.uniform(found, 2) == {"0": 2, "2": 2, "4": 2}
    assert factorize.uniform(found, 7) == {"0": 7, "2": 7}
    for rank in (1, 2, 7, 50):
        ranks = factorize.uniform(found, rank)
        small = factorize.factorize(copy.deepcopy(model), found, ranks)
        counted = sum(p.numel() for n, p in small.named_parameters() if "weight" in n)
        assert counted == factorize.stored(found, ranks)
        assert counted <= factorize.stored(found, {})


def test_types_devices_modes_and_frozen_weights_are_kept():
    model = net().half().requires_grad_(False)
    found = factorize.decompose(model)
    factorize.factorize(model, found, {"2": 3})
    for parameter in model.parameters():
        assert parameter.dtype == torch.float16
        assert not parameter.requires_grad
    assert not model[2].training


def test_a_sentence_encoder_is_factorized_trained_and_merged():
    model = sentences.classifier()
    found = factorize.decompose(model)
    assert len(found) == 13  # six a layer and the head
    ranks = factorize.uniform(found, 8)
    assert "heads.task" not in ranks
    factorize.factorize(model, found, ranks)
    methods.full(model)
    data = sentences.sentences()
    before = text_classifier.predict(model, data)
    history = text_classifier.train(model, data, lr=1e-3, epochs=2)
    assert history.losses[-1] < history.losses[0]
    trained = text_classifier.predict(model, data)
    assert not torch.allclose(before, trained)
    merged = text_classifier.predict(factorize.merge(model), data)
    torch.testing.assert_close(merged, trained, atol=1e-4, rtol=1e-4)


def test_a_factorized_head_still_counts_its_classes():
    model = sentences.classifier()
    found = factorize.decompose(model)
    factorize.factorize(model, found, {"heads.task": 1})
    assert model.heads["task"].out_features == 2
    text_classifier.train(model, sentences.sentences(), lr=1e-3, epochs=1)


# --- ranks by budget


def spectrum(out, into, values):
    """A decomposition with these singular values; the directions don't matter."""
    n = min(out, into)
    values = torch.tensor(sorted(values, reverse=True)[:n], dtype=torch.float64)
    eye = torch.eye(max(out, into), dtype=torch.float64)
    return factorize.Decomposition(
        down=values[:, None] * eye[:n, :into], up=eye[:out, :n], values=values
    )


shapes = st.tuples(st.integers(2, 7), st.integers(2, 7))


@st.composite
def spectra(draw, shape=None):
    found = {}
    for i in range(draw(st.integers(1, 3))):
        out, into = shape or draw(shapes)
        n = min(out, into)
        values = draw(st.lists(st.floats(0.05, 4), min_size=n, max_size=n))
        found[f"map{i}"] = spectrum(out, into, values)
    return found


def states(found):
    """Every way to give the maps ranks (None: whole): numbers and energy."""
    options = [
        [*range(1, factorize.break_even(*d.shape) + 1), None] for d in found.values()
    ]
    for choice in itertools.product(*options):
        named = zip(found, choice, strict=True)
        ranks = {name: rank for name, rank in named if rank is not None}
        yield factorize.stored(found, ranks), energy(found, ranks), ranks


def energy(found, ranks):
    return float(rank_budget.kept(found, ranks).sum())


@settings(max_examples=60)
@given(spectra(), st.floats(0, 1))
def test_the_budget_is_respected_and_no_choice_is_much_better(found, share):
    """Greedy on the hull: within one purchase of the best of all choices."""
    least = min(numbers for numbers, _, _ in states(found))
    most = factorize.stored(found, {})
    budget = int(least + share * (most - least))
    ranks = rank_budget.by_budget(found, budget)
    spent = factorize.stored(found, ranks)
    assert spent <= budget
    best = max(e for numbers, e, _ in states(found) if numbers <= budget)
    steps = [
        b[1] - a[1]
        for d in found.values()
        for a, b in itertools.pairwise(rank_budget.corners(d))
    ]
    assert energy(found, ranks) >= best - max(steps, default=0) - 1e-9


@settings(max_examples=60)
@given(spectra())
def test_what_was_spent_up_to_any_corner_was_spent_best(found):
    """At the budgets where a purchase ends exactly, the greedy choice is the optimum.

    Among all choices that store no more numbers, by brute force (Everett 1963).
    """
    everything = list(states(found))
    offers = [rank_budget.corners(d) for d in found.values()]
    slopes = sorted(
        (
            ((b[1] - a[1]) / (b[0] - a[0]), b[0] - a[0])
            for points in offers
            for a, b in itertools.pairwise(points)
        ),
        reverse=True,
    )
    budget = sum(points[0][0] for points in offers)
    for _, price in slopes:
        budget += price
        ranks = rank_budget.by_budget(found, budget)
        best = max(e for numbers, e, _ in everything if numbers <= budget)
        assert energy(found, ranks) == pytest.approx(best, abs=1e-9)


@few
@given(spectra(shape=(6, 6)), st.integers(0, 20))
def test_with_more_budget_never_less_energy(found, extra):
    least = 12 * len(found)
    small = rank_budget.by_budget(found, least)
    large = rank_budget.by_budget(found, least + extra)
    assert energy(found, large) >= energy(found, small) - 1e-12


def test_a_flat_map_is_left_whole_and_a_steep_one_is_cut():
    steep = spectrum(40, 40, [2.0**-i for i in range(40)])
    flat = spectrum(40, 40, [1.0] * 40)
    found = {"steep": steep, "flat": flat}
    uniform = factorize.uniform(found, 14)
    budget = factorize.stored(found, uniform)
    ranks = rank_budget.by_budget(found, budget)
    assert energy(found, ranks) > energy(found, uniform)
    assert "flat" not in ranks
    assert ranks["steep"] < 14
    assert factorize.stored(found, ranks) <= budget


def test_a_map_too_dear_to_keep_whole_does_not_eat_the_budget():
    """A flat map's best offer, to stay whole, can't be paid: others are served."""
    found = {
        "flat": spectrum(40, 40, [1.0] * 40),
        "steep": spectrum(40, 40, [1.5**-i for i in range(40)]),
    }
    ranks = rank_budget.by_budget(found, 80 * 10)
    assert ranks == {"flat": 6, "steep": 4}


def test_weights_and_shares_change_who_is_served():
    values = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    found = {"a": spectrum(10, 10, values), "b": spectrum(10, 10, values)}
    even = rank_budget.by_budget(found, 100)
    assert even["a"] + even["b"] == 5
    served = rank_budget.by_budget(found, 100, weights={"a": 1000.0})
    assert served["a"] == 4
    assert served["b"] == 1
    louder = {**found, "b": spectrum(10, 10, [30 * v for v in values])}
    assert rank_budget.by_budget(louder, 100) == even
    assert rank_budget.by_budget(louder, 100, shares=False) == {"a": 1, "b": 4}


def test_a_budget_for_everything_leaves_all_whole():
    found = factorize.decompose(net())
    assert rank_budget.by_budget(found, factorize.stored(found, {})) == {}


def test_a_budget_of_nothing_says_what_it_takes():
    found = factorize.decompose(net())
    with pytest.raises(MicrobudgetError, match=r"rank 1 everywhere takes 87\b"):
        rank_budget.by_budget(found, 86)
    assert rank_budget.by_budget(found, 87) == {"0": 1, "2": 1, "4": 1}
    with pytest.raises(MicrobudgetError, match="no maps"):
        rank_budget.by_budget({}, 10)
    with pytest.raises(MicrobudgetError, match="must be positive"):
        rank_budget.by_budget(found, 100, weights={"0": float("nan")})


# --- bad inputs


@pytest.mark.parametrize("rank", [0, -1, 4, 2.0, True, None])
def test_a_rank_that_cannot_be_is_refused(rank):
    with pytest.raises(MicrobudgetError, match="from 1 to 3"):
        factorize.svd(torch.randn(5, 3)).cut(rank, nn.Linear(3, 5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    model = net()
    model[2].weight.data[0, 0] = bad
    with pytest.raises(MicrobudgetError, match="NaN or infinity"):
        factorize.decompose(model)


def test_what_is_no_linear_map_is_refused():
    with pytest.raises(MicrobudgetError, match="no plain linear map"):
        factorize.decompose(nn.Sequential(nn.ReLU()))
    with pytest.raises(MicrobudgetError, match="nothing called 'nope'"):
        factorize.decompose(net(), ["nope"])
    with pytest.raises(MicrobudgetError, match="A matrix is needed"):
        factorize.svd(torch.randn(3))
    with pytest.raises(MicrobudgetError, match="rank 1 at least"):
        factorize.uniform(factorize.decompose(net()), 0)
    with pytest.raises(MicrobudgetError, match="has no numbers"):
        factorize.break_even(0, 3)
    with pytest.raises(MicrobudgetError, match="Nothing to merge"):
        factorize.merge(net())
    alone = nn.Linear(4, 4)
    with pytest.raises(MicrobudgetError, match="put it into a Sequential"):
        factorize.factorize(alone, factorize.decompose(alone), {"": 1})


def test_tied_and_special_maps_are_left_alone():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    model[2].weight = model[0].weight
    assert list(modules.plain_linear_layers(model)) == ["1"]
    attention = nn.MultiheadAttention(4, 2)  # reads out_proj.weight itself
    with pytest.raises(MicrobudgetError, match="no plain linear map"):
        modules.plain_linear_layers(attention)


def test_a_failing_call_leaves_the_model_as_it_was():
    model = net()
    before = copy.deepcopy(model.state_dict())
    found = factorize.decompose(model)
    for ranks in ({"0": 3, "2": 99}, {"0": 3, "nope": 1}, {"0": 3, "1": 1}):
        with pytest.raises(MicrobudgetError):
            factorize.factorize(model, found, ranks)
        assert not factorize.factored(model)
    torch.testing.assert_close(model.state_dict(), before)
    factorize.factorize(model, found, {"0": 3})
    with pytest.raises(MicrobudgetError, match="factorized before"):
        factorize.factorize(model, found, {"0": 2})


# --- on disk


def test_a_saved_model_comes_back_with_its_ranks(tmp_path):
    model = net()
    found = factorize.decompose(model)
    factorize.factorize(model, found, {"0": 3, "2": 5})
    path = checkpoint.save(model, tmp_path / "small.safetensors", note="mine")
    back = net(seed=1)
    assert checkpoint.load(back, path) == {"note": "mine"}
    ranks = {name: m.rank for name, m in factorize.factored(back).items()}
    assert ranks == {"0": 3, "2": 5}
    x = torch.randn(3, 12)
    assert torch.equal(back(x), model(x))


def test_a_saved_encoder_comes_back_and_is_smaller(tmp_path):
    model = sentences.classifier()
    found = factorize.decompose(model)
    whole = sum(t.numel() for t in model.state_dict().values()) * 4
    factorize.factorize(model, found, factorize.uniform(found, 4))
    path = checkpoint.save(model, tmp_path / "small.safetensors")
    assert path.stat().st_size < whole
    back = sentences.classifier(seed=3)
    checkpoint.load(back, path)
    data = sentences.sentences()
    expected = text_classifier.predict(model, data)
    torch.testing.assert_close(text_classifier.predict(back, data), expected)


def test_shared_weights_are_written_once(tmp_path):
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50))
    model[2].weight = model[0].weight
    found = factorize.decompose(model)
    factorize.factorize(model, found, {"1": 2})
    path = checkpoint.save(model, tmp_path / "tied.safetensors")
    assert path.stat().st_size < 4 * (400 + 32 + 58) + 1000
    back = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50))
    back[2].weight = back[0].weight
    checkpoint.load(back, path)
    ids = torch.tensor([3, 4])
    assert torch.equal(back(ids), model(ids))


def test_files_that_do_not_fit_are_refused_and_change_nothing(tmp_path):
    model = net()
    with pytest.raises(MicrobudgetError, match="No map of this model is factorized"):
        checkpoint.save(model, tmp_path / "x.safetensors")
    found = factorize.decompose(model)
    factorize.factorize(model, found, {"0": 3})
    path = checkpoint.save(model, tmp_path / "small.safetensors")
    other = nn.Sequential(nn.ReLU(), nn.Linear(12, 20))
    with pytest.raises(MicrobudgetError, match="a ReLU"):
        checkpoint.load(other, path)
    narrow = nn.Sequential(
        nn.Linear(12, 21), nn.GELU(), nn.Linear(21, 16), nn.GELU(), nn.Linear(16, 3)
    )
    before = copy.deepcopy(narrow.state_dict())
    with pytest.raises(MicrobudgetError, match=r"doesn't fit this model"):
        checkpoint.load(narrow, path)
    torch.testing.assert_close(narrow.state_dict(), before)
    with pytest.raises(MicrobudgetError, match="a LowRank"):
        checkpoint.load(model, path)
    with pytest.raises(MicrobudgetError, match="There is no"):
        checkpoint.load(net(), tmp_path / "absent")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, foreign)
    with pytest.raises(MicrobudgetError, match="not a file of a factorized model"):
        checkpoint.load(net(), foreign)
    foreign.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MicrobudgetError, match="not a file of a factorized model"):
        checkpoint.load(net(), foreign)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    model = net()
    found = factorize.decompose(model)
    factorize.factorize(model, found, {"0": 3})
    path = checkpoint.save(model, tmp_path / "small.safetensors")
    before = path.read_bytes()
    with pytest.raises(MicrobudgetError, match="plain text or numbers"):
        checkpoint.save(model, path, note=torch.zeros(1))
    model[0][0].weight.data[0, 0] = float("nan")
    with pytest.raises(MicrobudgetError, match=r"0\.0\.weight holds NaN"):
        checkpoint.save(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
