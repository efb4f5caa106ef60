"""Convolutions cut in two: exact at full rank, optimal below, shapes of every kind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from microbudget import low_rank
from microbudget.core.errors import DataError, MicrobudgetError
from microbudget.evaluation.moments import Moments
from microbudget.low_rank import convolution
from microbudget.low_rank.convolution import convolution_svd

few = settings(max_examples=30)
KINDS = "channel", "spatial"
kinds = st.sampled_from(KINDS)


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
    found = convolution_svd(conv, kind)
    cut = found.truncate(len(found.values), conv)
    same(cut(x), conv(x))
    assert (cut[1].bias is None) == (conv.bias is None)
    assert cut[0].bias is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(kind, padding):
    conv = nn.Conv2d(3, 4, (3, 5), padding=padding)
    found = convolution_svd(conv, kind)
    x = torch.randn(1, 3, 9, 9)
    same(found.truncate(len(found.values), conv)(x), conv(x))


def test_singular_values_are_numpys():
    conv = nn.Conv2d(4, 6, 3)
    w = conv.weight.detach().double().numpy()
    # the separable filters of Jaderberg et al.: rows (in, kh), columns (out, kw)
    matrices = w.reshape(6, -1), w.transpose(1, 2, 0, 3).reshape(12, 18)
    for kind, matrix in zip(KINDS, matrices, strict=True):
        expected = np.linalg.svd(matrix, compute_uv=False)
        found = convolution_svd(conv, kind)
        np.testing.assert_allclose(found.values, expected, atol=1e-9)
        tail = np.sqrt((expected[2:] ** 2).sum())
        assert found.error(2) == pytest.approx(tail)


def test_a_one_by_one_convolution_is_a_linear_layer():
    conv, linear = nn.Conv2d(5, 8, 1), nn.Linear(5, 8)
    linear.load_state_dict({"weight": conv.weight[:, :, 0, 0], "bias": conv.bias})
    cut = convolution_svd(conv).truncate(3, conv)
    thin = low_rank.svd(linear.weight).truncate(3, linear)
    x = torch.randn(2, 5, 4, 4)
    same(cut(x), thin(x.movedim(1, -1)).movedim(-1, 1))


def test_a_separable_filter_has_spatial_rank_one():
    conv = nn.Conv2d(1, 1, 3, bias=False)
    sobel = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 0, -1]))
    conv.weight.data[0, 0] = sobel
    assert convolution_svd(conv, "spatial").error(1) < 1e-12


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2),
    ).eval()  # fmt: skip


def test_by_outputs_the_error_is_pcas_and_below_the_weights(monkeypatch):
    monkeypatch.setattr(convolution, "DAMPING", 0.0)
    model, x = net(), torch.randn(6, 3, 10, 10).cumsum(-1)  # neighbours are alike
    own = low_rank.collect_outputs(model, [x[:2], x[2:]])
    assert list(own) == ["0", "4"]
    conv = model[0]
    y = conv(x).movedim(1, -1).reshape(-1, 8).detach().double()
    assert own["0"].count == len(y) == 600
    aware = convolution_svd(conv, outputs=own["0"])
    tails = np.linalg.svd(y - y.mean(0), compute_uv=False) / len(y) ** 0.5
    for rank in range(1, 8):
        cut = aware.truncate(rank, conv)
        error = (cut(x) - conv(x)).square().sum(1).mean().sqrt()
        expected = np.sqrt((tails[rank:] ** 2).sum())
        assert float(error.detach()) == pytest.approx(expected, rel=1e-3, abs=1e-4)
        same(cut(x).mean((0, 2, 3)), conv(x).mean((0, 2, 3)))
        plain = convolution_svd(conv).truncate(rank, conv)
        worse = (plain(x) - conv(x)).square().sum(1).mean().sqrt()
        assert float(error.detach()) <= float(worse.detach()) + 1e-5


def test_silent_filters_are_kept_last_and_not_lost():
    conv, x = nn.Conv2d(3, 6, 3), torch.randn(1, 3, 6, 6)
    silent = Moments.zeros(6).add(torch.zeros(50, 6))
    found = convolution_svd(conv, outputs=silent)
    assert torch.isfinite(found.truncate(2, conv)[0].weight).all()
    loud = Moments.zeros(6).add(torch.randn(50, 1) @ torch.randn(1, 6))
    same(convolution_svd(conv, outputs=loud).truncate(6, conv)(x), conv(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_factorized_and_saved(tmp_path, kind):
    model, x = net(), torch.randn(2, 3, 8, 8)
    found = low_rank.decompose_convolutions(model, kind) | low_rank.decompose(model)
    ranks = low_rank.uniform_ranks(found, 2)
    assert ranks == {"0": 2, "4": 2}
    small = low_rank.factorize(model, found, ranks | {"7": 1})
    path = low_rank.save(small, tmp_path / "small.safetensors")
    assert torch.equal(low_rank.load(path, net(seed=1))(x), small(x))


def test_what_does_not_fit_is_refused():
    model = net()
    with pytest.raises(MicrobudgetError, match=r"8 groups. A depthwise one has rank 1"):
        convolution_svd(model[2])
    with pytest.raises(DataError, match="Moments of 5 numbers"):
        convolution_svd(model[0], outputs=Moments.zeros(5).add(torch.ones(9, 5)))
    with pytest.raises(MicrobudgetError, match="Depthwise ones"):
        low_rank.decompose_convolutions(nn.Sequential(model[2]))
    with pytest.raises(MicrobudgetError, match="There is no '2' here"):
        low_rank.decompose_convolutions(model, names=["2"])
    nothing = low_rank.collect_outputs(model, [])
    with pytest.raises(DataError, match="No samples were collected"):
        low_rank.decompose_convolutions(model, outputs=nothing)
    assert not any(m._forward_hooks for m in model.modules())
    model[0].weight.data[0] = float("nan")
    with pytest.raises(MicrobudgetError, match="NaN or infinity"):
        low_rank.decompose_convolutions(model)
