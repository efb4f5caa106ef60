"""Convolutions cut in two: exact at full rank, optimal below, shapes of every kind."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from microbudget.core.errors import DataError, MicrobudgetError
from microbudget.evaluation.moments import Moments
from microbudget.low_rank import checkpoint, factorize
from microbudget.low_rank import conv as conv_factorization

few = settings(max_examples=30)
kinds = st.sampled_from(conv_factorization.KINDS)


@st.composite
def convs(draw):
    torch.manual_seed(draw(st.integers(0, 10_000)))
    return nn.Conv2d(
        draw(st.integers(1, 5)), draw(st.integers(1, 5)),
        (draw(st.integers(1, 3)), draw(st.integers(1, 4))),
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "circular"])),
    )  # fmt: skip


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@few
@given(convs(), kinds)
def test_full_rank_is_exact_whatever_the_geometry(conv, kind):
    x = torch.randn(2, conv.in_channels, 11, 12)
    found = conv_factorization.svd(conv, kind)
    cut = found.cut(len(found.values), conv)
    same(cut(x), conv(x))
    assert (cut[1].bias is None) == (conv.bias is None)
    assert cut[0].bias is None


@few
@given(convs(), kinds, st.data())
def test_below_it_the_error_is_the_tail_and_merging_changes_nothing(conv, kind, data):
    found = conv_factorization.svd(conv, kind)
    rank = data.draw(st.integers(1, len(found.values)))
    cut = found.cut(rank, conv)
    whole = cut.merged()
    x = torch.randn(2, conv.in_channels, 11, 12)
    same(whole(x), cut(x))
    error = float((whole.weight - conv.weight).detach().norm())
    assert error == pytest.approx(found.error(rank), abs=1e-4)
    assert (whole.stride, whole.padding) == (conv.stride, conv.padding)
    assert (whole.dilation, whole.padding_mode) == (conv.dilation, conv.padding_mode)


@pytest.mark.parametrize("kind", conv_factorization.KINDS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(kind, padding):
    conv = nn.Conv2d(3, 4, (3, 5), padding=padding)
    found = conv_factorization.svd(conv, kind)
    cut, x = found.cut(len(found.values), conv), torch.randn(1, 3, 9, 9)
    same(cut(x), conv(x))
    same(cut.merged()(x), conv(x))


def test_singular_values_are_numpys():
    conv = nn.Conv2d(4, 6, 3)
    w = conv.weight.detach().double().numpy()
    channel = np.linalg.svd(w.reshape(6, -1), compute_uv=False)
    np.testing.assert_allclose(conv_factorization.svd(conv).values, channel, atol=1e-9)
    # the separable filters of Jaderberg et al.: rows (in, kh), columns (out, kw)
    spatial = np.linalg.svd(w.transpose(1, 2, 0, 3).reshape(12, 18), compute_uv=False)
    np.testing.assert_allclose(
        conv_factorization.svd(conv, "spatial").values, spatial, atol=1e-9
    )


def test_a_one_by_one_convolution_is_a_linear_map():
    conv, linear = nn.Conv2d(5, 8, 1), nn.Linear(5, 8)
    linear.load_state_dict({"weight": conv.weight[:, :, 0, 0], "bias": conv.bias})
    cut = conv_factorization.svd(conv).cut(3, conv)
    thin = factorize.svd(linear.weight).cut(3, linear)
    x = torch.randn(2, 5, 4, 4)
    same(cut(x), thin(x.movedim(1, -1)).movedim(-1, 1))


def test_a_separable_filter_has_spatial_rank_one():
    conv = nn.Conv2d(1, 1, 3, bias=False)
    sobel = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 0, -1]))
    conv.weight.data[0, 0] = sobel
    assert conv_factorization.svd(conv, "spatial").error(1) < 1e-12
    # one channel's filter, as a map from patch to pixel, has rank one whatever it is
    assert len(conv_factorization.svd(conv, "channel").values) == 1


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2),
    ).eval()  # fmt: skip


def test_by_outputs_the_error_is_pcas_and_below_the_weights():
    model, x = net(), torch.randn(6, 3, 10, 10).cumsum(-1)  # neighbours are alike
    own = conv_factorization.collect_outputs(model, [x[:2], x[2:]])
    assert list(own) == ["0", "4"]
    conv = model[0]
    y = conv(x).movedim(1, -1).reshape(-1, 8).detach().double()
    assert own["0"].count == len(y) == 600
    aware = conv_factorization.svd(conv, outputs=own["0"], damping=0)
    tails = np.linalg.svd(y - y.mean(0), compute_uv=False) / len(y) ** 0.5
    for rank in range(1, 8):
        cut = aware.cut(rank, conv)
        error = (cut(x) - conv(x)).square().sum(1).mean().sqrt()
        expected = np.sqrt((tails[rank:] ** 2).sum())
        assert float(error.detach()) == pytest.approx(expected, rel=1e-3, abs=1e-4)
        same(cut(x).mean((0, 2, 3)), conv(x).mean((0, 2, 3)))
        plain = conv_factorization.svd(conv).cut(rank, conv)
        worse = (plain(x) - conv(x)).square().sum(1).mean().sqrt()
        assert float(error.detach()) <= float(worse.detach()) + 1e-5


def test_silent_filters_are_kept_last_and_not_lost():
    conv = nn.Conv2d(3, 6, 3)
    silent = Moments.zeros(6).add(torch.zeros(50, 6))
    for damping in (1e-4, 0.0):
        found = conv_factorization.svd(conv, outputs=silent, damping=damping)
        assert torch.isfinite(found.cut(2, conv)[0].weight).all()
    loud = Moments.zeros(6).add(torch.randn(50, 1) @ torch.randn(1, 6))
    found = conv_factorization.svd(conv, outputs=loud)
    cut, x = found.cut(6, conv), torch.randn(1, 3, 6, 6)
    same(cut.merged().weight, conv.weight)
    same(cut(x), conv(x))


def test_a_network_is_factorized_by_budget_saved_and_merged(tmp_path):
    model, x = net(), torch.randn(2, 3, 8, 8)
    found = conv_factorization.decompose(model)
    found |= {"7": factorize.decompose(model)["7"]}
    ranks = factorize.uniform(found, 2)
    assert ranks == {"0": 2, "4": 2}
    small = factorize.factorize(copy.deepcopy(model), found, ranks)
    spatial = conv_factorization.decompose(model, "spatial", names=["0"])
    factorize.factorize(small, {"7": found["7"]}, {"7": 1})
    path = checkpoint.save(small, tmp_path / "small.safetensors")
    back = net(seed=1)
    checkpoint.load(back, path)
    assert torch.equal(back(x), small(x))
    same(factorize.merge(back)(x), small(x))
    other = factorize.factorize(copy.deepcopy(model), spatial, {"0": 3})
    path = checkpoint.save(other, tmp_path / "spatial.safetensors")
    checkpoint.load(back := net(seed=2), path)
    assert torch.equal(back(x), other(x))


def test_what_does_not_fit_is_refused():
    model = net()
    with pytest.raises(MicrobudgetError, match="8 groups: a depthwise one has rank 1"):
        conv_factorization.svd(model[2])
    with pytest.raises(MicrobudgetError, match="use 'channel' or 'spatial'"):
        conv_factorization.svd(model[0], "tucker")
    with pytest.raises(MicrobudgetError, match="kind='channel'"):
        own = Moments.zeros(8).add(torch.randn(9, 8))
        conv_factorization.svd(model[0], "spatial", own)
    with pytest.raises(DataError, match="Moments of 5 numbers"):
        conv_factorization.svd(model[0], outputs=Moments.zeros(5).add(torch.ones(9, 5)))
    with pytest.raises(MicrobudgetError, match="Depthwise ones"):
        conv_factorization.decompose(nn.Sequential(model[2]))
    with pytest.raises(MicrobudgetError, match="nothing called '2'"):
        conv_factorization.decompose(model, names=["2"])
    with pytest.raises(DataError, match="Nothing came out of 0"):
        conv_factorization.collect_outputs(model, [])
    assert not any(m._forward_hooks for m in model.modules())
    model[0].weight.data[0] = float("nan")
    with pytest.raises(MicrobudgetError, match="NaN or infinity"):
        conv_factorization.decompose(model)
