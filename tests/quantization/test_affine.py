"""Affine grids: how far a weight moves, what stays exact, and what bad input says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from microbudget.core.errors import QuantizationError
from microbudget.quantization import affine
from microbudget.quantization.affine import QuantConfig, expand_groups, round_to_nearest

configs = st.builds(
    QuantConfig,
    bits=st.sampled_from(affine.BITS),
    group_size=st.sampled_from([32, 64, None]),
    symmetric=st.booleans(),
)
widths = st.sampled_from([64, 80, 96, 100])  # with a ragged last group, and without


@st.composite
def matrices(draw):
    """Anything finite, also constant rows and zeros; float32 (rows, 64 … 100)."""
    shape = (draw(st.integers(1, 3)), draw(widths))
    numbers = st.floats(-100, 100, width=32) | st.floats(-0.125, 0.125, width=32)
    return torch.from_numpy(draw(arrays(np.float32, shape, elements=numbers)))


@st.composite
def gaussian(draw):
    seed, scale = draw(st.integers(0, 2**32)), draw(st.sampled_from([1.0, 30.0, 1e3]))
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(4, draw(widths), generator=generator)


def scales_of(quantized) -> torch.Tensor:
    """float32 (out, in): the scale of every weight."""
    return quantized.scales.float()[:, quantized.groups.long()]


def lost_to_float16(w, quantized, config: QuantConfig) -> torch.Tensor:
    """(out, in): by how much the stored scale's grid is shorter than the range."""
    exact = []
    for part in w.double().split(config.group_size or w.shape[1], 1):
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if config.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        exact.append(high - low)
    exact = torch.stack(exact, 1)[:, quantized.groups.long()]
    return (exact - config.q_max * scales_of(quantized)).clamp(min=0).float()


@given(matrices() | gaussian(), configs)
def test_no_weight_moves_by_more_than_half_a_step(w, config):
    quantized = round_to_nearest(w, config)
    moved = (w - quantized.dequantize()).abs()
    allowed = scales_of(quantized) / 2 + lost_to_float16(w, quantized, config)
    assert (moved <= allowed + 1e-5 * w.abs() + 1e-9).all()


@given(matrices(), configs)
def test_codes_shapes_and_types(w, config):
    quantized = round_to_nearest(w, config)
    groups = -(-w.shape[1] // (config.group_size or w.shape[1]))
    assert quantized.codes.shape == w.shape
    assert quantized.scales.shape == quantized.zero_points.shape == (len(w), groups)
    assert quantized.codes.dtype == quantized.zero_points.dtype == torch.uint8
    assert quantized.scales.dtype == torch.float16
    assert quantized.groups.dtype == torch.int32
    for numbers in (quantized.codes, quantized.zero_points):
        assert 0 <= numbers.min() <= numbers.max() <= config.q_max
    assert (quantized.scales > 0).all()
    if config.symmetric:
        assert (quantized.zero_points == 2 ** (config.bits - 1)).all()


@given(matrices(), configs, st.data())
def test_zero_stays_exactly_zero(w, config, data):
    w[:, data.draw(st.integers(0, w.shape[1] - 1))] = 0
    found = round_to_nearest(w, config).dequantize()
    assert (found[w == 0] == 0).all()
    assert torch.isfinite(found).all()


@given(matrices(), configs)
def test_grid_points_stay_where_they_are(w, config):
    quantized = round_to_nearest(w, config)
    zero_points = quantized.zero_points.float()[:, quantized.groups.long()]
    again = (quantized.dequantize() / scales_of(quantized)).round() + zero_points
    assert torch.equal(again.byte(), quantized.codes)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_arithmetic_is_torchs(bits, symmetric):
    """The same scales and zeros in torch's own operator, one channel a row."""
    w = torch.randn(16, 96, generator=torch.Generator().manual_seed(bits))
    config = QuantConfig(bits, None, symmetric)
    found = round_to_nearest(w, config)
    scale, zero = found.scales[:, 0].float(), found.zero_points[:, 0].int()
    faked = torch.fake_quantize_per_channel_affine(w, scale, zero, 0, 0, config.q_max)
    torch.testing.assert_close(found.dequantize(), faked)


def test_a_grid_by_hand():
    w = torch.tensor([[-1.0, 0.0, 0.5, 2.0]])
    found = round_to_nearest(w, QuantConfig(2, None))
    assert found.scales.tolist() == [[1.0]]
    assert found.zero_points.tolist() == [[1]]
    assert found.codes.tolist() == [[0, 1, 1, 3]]  # 0.5 goes to the even neighbour
    symmetric = round_to_nearest(w, QuantConfig(2, None, symmetric=True))
    assert symmetric.zero_points.tolist() == [[2]]
    assert symmetric.scales.item() == pytest.approx(4 / 3, rel=1e-3)
    assert symmetric.codes.tolist() == [[1, 2, 2, 3]]


def test_rows_are_split():
    w = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    whole = round_to_nearest(w, QuantConfig())
    parts = whole.split_rows([2, 4])
    found = torch.cat([part.dequantize() for part in parts])
    assert torch.equal(found, whole.dequantize())
    assert [len(part.scales) for part in parts] == [2, 4]


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.full((4, 64), float("nan")), "NaN or infinity"),
        (torch.full((4, 64), float("-inf")), "NaN or infinity"),
        (torch.zeros(64), r"matrix \(out, in\), got \(64,\)"),
        (torch.zeros(2, 2, 64), "expected a matrix"),
        (torch.zeros(0, 64), r"got \(0, 64\)"),
        (torch.zeros(4, 0), r"got \(4, 0\)"),
        (torch.zeros(4, 63), "63 inputs are fewer than group_size=64"),
        (torch.full((4, 64), 1e30), "scale of 6.7e.28 can't be stored in 16 bits"),
        (torch.tensor([[-3e38, 3e38] * 32]), "range must be finite"),
    ],
)
def test_weights_that_cant_be_quantized(weight, says):
    with pytest.raises(QuantizationError, match=says):
        round_to_nearest(weight, QuantConfig())
    with pytest.raises(QuantizationError, match=r"^layer\.3: 8 inputs"):
        affine.require_matrix(torch.zeros(4, 8), QuantConfig(), "layer.3")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"bits": 1}, "bits=1: use one of"),
        ({"bits": 16}, "bits=16"),
        ({"group_size": 0}, "group_size=0: use 32"),
        ({"group_size": -1}, "or None"),
        ({"damping": 0.0}, "damping=0.0: use about 0.01"),
        ({"damping": 1.0}, "damping=1.0"),
        ({"damping": float("nan")}, "damping=nan"),
    ],
)
def test_configs_that_have_no_meaning(setting, says):
    with pytest.raises(QuantizationError, match=says):
        QuantConfig(**setting)


def test_configs_say_what_they_are():
    assert str(QuantConfig()) == "4 bits, group 64"
    long = QuantConfig(3, None, symmetric=True, act_order=True)
    assert str(long) == "3 bits, group row, symmetric, act-order"


def test_signal_to_noise_in_decibels():
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    assert affine.sqnr(w, 0.9 * w) == pytest.approx(20)
    assert affine.sqnr(w, 0.99 * w) == pytest.approx(40)
    assert affine.sqnr(w, torch.zeros(1000)) == pytest.approx(0)
    assert affine.sqnr(w, w) > 1000


def test_bits_per_weight_counts_scales_and_zeros():
    w = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    four = round_to_nearest(w, QuantConfig(4, 64))
    three = round_to_nearest(w, QuantConfig(3, 32))
    assert affine.bits_per_weight([four]) == 4 + (16 + 4) / 64
    assert affine.bits_per_weight([three]) == 3 + (16 + 3) / 32
    mean = (4 + 20 / 64 + 3 + 19 / 32) / 2
    assert affine.bits_per_weight([four, three]) == pytest.approx(mean)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("columns, width", [(96, 32), (95, 32), (33, 32), (7, 64)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_each_column_gets_what_its_group_has(columns, width, shuffled, kind):
    groups = torch.arange(columns) // width
    if shuffled:  # as other libraries' checkpoints have them
        groups = groups[torch.randperm(columns, generator=torch.manual_seed(0))]
    values = torch.rand(5, int(groups.max()) + 1)
    found = expand_groups(values, groups.to(kind))
    assert torch.equal(found, values[:, groups])
