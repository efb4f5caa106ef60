"""Low rank by a layer's inputs: the optimum, and kin of PCA."""

import numpy as np
import pytest
import sentences
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA, TruncatedSVD
from torch import nn

from microbudget import low_rank
from microbudget.core.errors import DataError, MicrobudgetError
from microbudget.evaluation import moments as flow
from microbudget.evaluation.moments import Moments

few = settings(max_examples=25)
sizes, seeds = st.integers(2, 8), st.integers(0, 10_000)


def samples(n, into, seed, mean=0.5):
    """Some directions are far stronger than others, and the mean isn't zero."""
    torch.manual_seed(seed)
    scales = torch.logspace(0.5, -1.5, into)
    mixed = torch.randn(n, into) * scales @ torch.linalg.qr(torch.randn(into, into))[0]
    return (mixed + mean * torch.randn(into)).double()


def moments(x):
    return Moments.zeros(x.shape[1]).add(x)


def linear_layer(into, out, seed, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(into, out, bias=bias).double()


def product(found, rank):
    return found.up[:, :rank] @ found.down[:rank]


def data_error(linear, cut, x):
    gaps = (linear(x) - cut(x)).detach()
    return float(gaps.square().sum(1).mean().sqrt())


@few
@given(sizes, sizes, seeds, st.data())
def test_its_error_on_data_is_eckart_youngs_and_never_above_plain_svds(
    out, into, seed, data
):
    x, linear = samples(60, into, seed), linear_layer(into, out, seed)
    rank = data.draw(st.integers(1, min(out, into)))
    aware = low_rank.data_aware_svd(linear.weight, moments(x), damping=0)
    plain = low_rank.svd(linear.weight)
    own = data_error(linear, aware.truncate(rank, linear), x)
    # the optimum: singular values of the outputs themselves
    outputs = (x @ linear.weight.T).detach().numpy() / np.sqrt(len(x))
    tail = np.linalg.svd(outputs, compute_uv=False)[rank:]
    scale = np.linalg.norm(outputs)
    assert own == pytest.approx(np.sqrt((tail**2).sum()), abs=1e-6 * scale)
    assert own == pytest.approx(aware.error(rank), abs=1e-6 * scale)
    assert own <= data_error(linear, plain.truncate(rank, linear), x) + 1e-6 * scale


@few
@given(sizes, sizes, seeds, st.data())
def test_centred_is_never_worse_and_its_bias_is_the_best_one(out, into, seed, data):
    x, linear = samples(60, into, seed, mean=3.0), linear_layer(into, out, seed)
    rank = data.draw(st.integers(1, min(out, into)))
    own = moments(x)
    loose = low_rank.data_aware_svd(linear.weight, own, damping=0).truncate(
        rank, linear
    )
    tight = low_rank.data_aware_svd(linear.weight, own, damping=0, centred=True)
    cut = tight.truncate(rank, linear)
    scale = float(linear(x).detach().norm()) / len(x) ** 0.5
    assert data_error(linear, cut, x) <= data_error(linear, loose, x) + 1e-6 * scale
    assert data_error(linear, cut, x) == pytest.approx(
        tight.error(rank), abs=1e-6 * scale
    )
    # the outputs' mean is the same, so no other bias is better
    torch.testing.assert_close(
        cut(x).mean(0), linear(x).mean(0), atol=1e-6 * scale, rtol=1e-6
    )


@few
@given(sizes, sizes, seeds, st.data())
def test_equal_to_whitening_and_unwhitening(out, into, seed, data):
    """SVD-LLM's own formula (Wang et al. 2024), with the inverse written out."""
    x, w = samples(60, into, seed), linear_layer(into, out, seed).weight.detach()
    rank = data.draw(st.integers(1, min(out, into)))
    root = torch.linalg.cholesky(moments(x).matrix())
    u, s, v = torch.linalg.svd(w @ root, full_matrices=False)
    theirs = (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(root)
    found = low_rank.data_aware_svd(w, moments(x), damping=0)
    torch.testing.assert_close(product(found, rank), theirs, atol=1e-6, rtol=1e-5)


def test_of_the_identity_it_is_scikit_learns_pca():
    x = samples(200, 8, 0, mean=2.0)
    identity = nn.Linear(8, 8).double()
    nn.init.eye_(identity.weight)
    nn.init.zeros_(identity.bias)
    found = low_rank.data_aware_svd(
        identity.weight, moments(x), centred=True, damping=0
    )
    for rank in (1, 3, 7):
        pca = PCA(rank).fit(x.numpy())
        rebuilt = pca.inverse_transform(pca.transform(x.numpy()))
        cut = found.truncate(rank, identity)
        np.testing.assert_allclose(cut(x).detach(), rebuilt, atol=1e-8)
        cosines = (found.up[:, :rank].T @ torch.from_numpy(pca.components_.T)).abs()
        np.testing.assert_allclose(cosines, np.eye(rank), atol=1e-7)
        variance = found.values[:rank].square() * len(x) / (len(x) - 1)
        np.testing.assert_allclose(variance, pca.explained_variance_, rtol=1e-9)


def test_uncentred_it_is_scikit_learns_truncated_svd():
    x = samples(200, 8, 1, mean=2.0)
    found = low_rank.data_aware_svd(torch.eye(8), moments(x), damping=0)
    theirs = TruncatedSVD(3, algorithm="arpack", random_state=0).fit(x.numpy())
    rebuilt = theirs.inverse_transform(theirs.transform(x.numpy()))
    np.testing.assert_allclose(x @ product(found, 3).T, rebuilt, atol=1e-8)


@few
@given(sizes, sizes, seeds, st.data())
def test_by_the_loss_its_error_is_the_optimum_too(out, into, seed, data):
    """‖Rᵀ(W − W')L‖ is the tail, and no other method's matrix gives less."""
    x, linear = samples(60, into, seed), linear_layer(into, out, seed)
    gradients = moments(samples(60, out, seed + 1, mean=0.0))
    rank = data.draw(st.integers(1, min(out, into)))
    w, own = linear.weight.detach(), moments(x)
    left = torch.linalg.cholesky(gradients.matrix()).T
    right = torch.linalg.cholesky(own.matrix())
    scale = float((left @ w @ right).norm())

    def error(found):
        return float((left @ (w - product(found, rank)) @ right).norm())

    found = low_rank.data_aware_svd(w, own, gradients, damping=0)
    tail = np.linalg.svd(left @ w @ right, compute_uv=False)[rank:]
    assert error(found) == pytest.approx(np.sqrt((tail**2).sum()), abs=1e-6 * scale)
    assert error(found) == pytest.approx(found.error(rank), abs=1e-6 * scale)
    for other in (low_rank.data_aware_svd(w, own, damping=0), low_rank.svd(w)):
        assert error(found) <= error(other) + 1e-6 * scale
    whole = low_rank.data_aware_svd(w, own, gradients)  # with damping
    torch.testing.assert_close(whole.up @ whole.down, w, atol=1e-6, rtol=1e-5)


def test_centred_by_the_loss_the_outputs_mean_is_kept():
    x, linear = samples(90, 6, 0, mean=4.0), linear_layer(6, 8, 0)
    gradients = moments(samples(90, 8, 1, mean=0.0))
    cut = low_rank.data_aware_svd(linear.weight, moments(x), gradients, centred=True)
    torch.testing.assert_close(cut.truncate(2, linear)(x).mean(0), linear(x).mean(0))


def test_padding_has_no_gradients_to_count():
    model = sentences.classifier()
    data = sentences.sentences()
    batch = data.collate([data[i] for i in range(len(data))])

    def loss(model, batch):
        ids, mask, labels = batch
        return torch.nn.functional.cross_entropy(
            model(ids, mask), labels, reduction="sum"
        )

    found = flow.collect_gradients(model, [batch], loss, token_mask=lambda b: b[1])
    name = "encoder.encoder.layer.1.output.dense"
    assert found[name].count == int(batch[1].sum())
    own = flow.collect_moments(model, [batch[:2]], token_mask=lambda b: b[1])
    cuts = low_rank.data_aware_decompose(model, own, found, centred=True)
    full = {name: len(d.values) for name, d in cuts.items()}
    small = low_rank.factorize(model, cuts, full)
    torch.testing.assert_close(
        small(*batch[:2]), model(*batch[:2]), atol=1e-3, rtol=1e-3
    )


def test_a_bias_appears_where_there_was_none():
    x, linear = samples(60, 6, 0, mean=5.0), linear_layer(6, 7, 0, bias=False)
    own = moments(x)
    centred = low_rank.data_aware_svd(linear.weight, own, centred=True)
    assert centred.truncate(2, linear)[1].bias is not None
    assert (
        low_rank.data_aware_svd(linear.weight, own).truncate(2, linear)[1].bias is None
    )


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).eval()


def test_on_a_network_its_outputs_are_nearer():
    model, x = net(), samples(300, 6, 0).float()
    own = flow.collect_moments(model, [(x,)])
    ranks = {"0": 2}
    errors = {}
    for name, found in (
        ("plain", low_rank.decompose(model)),
        ("aware", low_rank.data_aware_decompose(model, own)),
        ("centred", low_rank.data_aware_decompose(model, own, centred=True)),
    ):
        small = low_rank.factorize(model, found, ranks)
        errors[name] = float((small[0](x) - model[0](x)).detach().norm())
        w = small[0][1].weight @ small[0][0].weight
        if name != "centred":
            expected = low_rank.output_error(model[0].weight, w, own["0"])
            assert errors[name] == pytest.approx(expected * len(x) ** 0.5, rel=1e-3)
    assert errors["centred"] <= errors["aware"] < errors["plain"]


@pytest.mark.parametrize("damping", [0.0, 1e-4])
def test_directions_that_no_sample_shows_are_kept_last(damping):
    x, linear = samples(4, 8, 0), linear_layer(8, 12, 0)
    found = low_rank.data_aware_svd(linear.weight, moments(x), damping=damping)
    # four samples span four directions: rank four is enough for them
    error = data_error(linear, found.truncate(4, linear), x)
    assert error < 0.02 * float(linear(x).detach().norm())
    if damping:
        exact = found.up @ found.down
        torch.testing.assert_close(exact, linear.weight.detach(), atol=1e-6, rtol=1e-5)
    dead = low_rank.data_aware_svd(linear.weight, moments(torch.zeros(9, 8).double()))
    zeros = torch.zeros(3, 8).double()
    torch.testing.assert_close(dead.truncate(2, linear)(zeros), linear(zeros))


def test_what_does_not_fit_is_refused():
    model, x = net(), torch.randn(20, 6)
    w, own = model[0].weight, Moments.zeros(6).add(x)
    with pytest.raises(DataError, match="Moments of 9 numbers for a layer with 6"):
        low_rank.data_aware_svd(w, Moments.zeros(9).add(torch.randn(20, 9)))
    with pytest.raises(DataError, match=r"Moments of 6 .* with 9 outputs"):
        low_rank.data_aware_svd(w, own, own)
    with pytest.raises(DataError, match="No samples"):
        low_rank.data_aware_svd(w, Moments.zeros(6))
    for wrong in (torch.randn(3, 5), torch.randn(6), torch.full((3, 6), np.nan)):
        with pytest.raises(DataError):
            own.add(wrong)
    assert own.count == 20
    with pytest.raises(MicrobudgetError, match="NaN or infinity"):
        low_rank.data_aware_svd(w * float("nan"), own)
    for batches in ([], [(torch.full((2, 6), float("nan")),)]):
        with pytest.raises(DataError):
            flow.collect_moments(model, batches)
        with pytest.raises(DataError):
            flow.collect_gradients(model, batches, lambda m, b: m(*b).sum())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    with pytest.raises(MicrobudgetError, match="There is no '0' here"):
        low_rank.data_aware_decompose(model, {"0": own}, {"2": own})
    with pytest.raises(MicrobudgetError, match="There is no 'nope' here"):
        low_rank.data_aware_decompose(model, {"nope": own})
