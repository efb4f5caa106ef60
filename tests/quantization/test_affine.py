"""Affine grids: how far a weight moves, what stays exact, and what bad input says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from microbudget.core.errors import QuantizationError
from microbudget.quantization import affine
from microbudget.quantization.affine import Scheme, over_columns, round_to_nearest

schemes = st.builds(
    Scheme,
    bits=st.sampled_from(affine.BITS),
    group=st.sampled_from([32, 64, None]),
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


def lost_to_float16(w, quantized, scheme: Scheme) -> torch.Tensor:
    """(out, in): by how much the stored scale's grid is shorter than the range."""
    exact = []
    for part in w.double().split(scheme.group or w.shape[1], 1):
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if scheme.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        exact.append(high - low)
    exact = torch.stack(exact, 1)[:, quantized.groups.long()]
    return (exact - scheme.top * scales_of(quantized)).clamp(min=0).float()


@given(matrices() | gaussian(), schemes)
def test_no_weight_moves_by_more_than_half_a_step(w, scheme):
    quantized = round_to_nearest(w, scheme)
    moved = (w - quantized.dequantize()).abs()
    allowed = scales_of(quantized) / 2 + lost_to_float16(w, quantized, scheme)
    assert (moved <= allowed + 1e-5 * w.abs() + 1e-9).all()


@given(gaussian(), schemes)
def test_float16_scales_lose_less_than_a_thousandth_of_the_range(w, scheme):
    quantized = round_to_nearest(w, scheme)
    lost = lost_to_float16(w, quantized, scheme)
    assert (lost <= scheme.top * scales_of(quantized) * 2**-10).all()


@given(matrices(), schemes)
def test_codes_shapes_and_types(w, scheme):
    quantized = round_to_nearest(w, scheme)
    groups = -(-w.shape[1] // (scheme.group or w.shape[1]))
    assert quantized.codes.shape == w.shape
    assert quantized.scales.shape == quantized.zeros.shape == (len(w), groups)
    assert quantized.codes.dtype == quantized.zeros.dtype == torch.uint8
    assert quantized.scales.dtype == torch.float16
    assert quantized.groups.dtype == torch.int32
    for numbers in (quantized.codes, quantized.zeros):
        assert 0 <= numbers.min() <= numbers.max() <= scheme.top
    assert (quantized.scales > 0).all()
    if scheme.symmetric:
        assert (quantized.zeros == 2 ** (scheme.bits - 1)).all()


@given(matrices(), schemes, st.data())
def test_zero_stays_exactly_zero(w, scheme, data):
    w[:, data.draw(st.integers(0, w.shape[1] - 1))] = 0
    found = round_to_nearest(w, scheme).dequantize()
    assert (found[w == 0] == 0).all()
    assert torch.isfinite(found).all()


@given(matrices(), schemes)
def test_grid_points_stay_where_they_are(w, scheme):
    quantized = round_to_nearest(w, scheme)
    zeros = quantized.zeros.float()[:, quantized.groups.long()]
    again = affine.to_codes(quantized.dequantize(), scales_of(quantized), zeros, scheme)
    assert torch.equal(again.byte(), quantized.codes)


@given(gaussian(), schemes)
def test_rounding_twice_is_rounding_once(w, scheme):
    """A group that uses its whole grid gets the same grid again."""
    scheme = Scheme(scheme.bits, scheme.group)  # asymmetric
    once = round_to_nearest(w, scheme)
    twice = round_to_nearest(once.dequantize(), scheme)
    codes = once.codes.split(scheme.group or w.shape[1], 1)
    whole = torch.stack(
        [(part.amin(1) == 0) & (part.amax(1) == scheme.top) for part in codes], 1
    )[:, once.groups.long()]
    assert torch.equal(once.codes[whole], twice.codes[whole])
    assert torch.equal(once.dequantize()[whole], twice.dequantize()[whole])
    moved = (once.dequantize() - twice.dequantize()).abs()
    assert (moved <= 0.7 * scales_of(twice)).all()  # the others: one rounding at most


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_arithmetic_is_torchs(bits, symmetric):
    """The same scales and zeros in torch's own operator, one channel a row."""
    w = torch.randn(16, 96, generator=torch.Generator().manual_seed(bits))
    scheme = Scheme(bits, None, symmetric)
    found = round_to_nearest(w, scheme)
    scale, zero = found.scales[:, 0].float(), found.zeros[:, 0].int()
    faked = torch.fake_quantize_per_channel_affine(w, scale, zero, 0, 0, scheme.top)
    torch.testing.assert_close(found.dequantize(), faked)


def test_a_grid_by_hand():
    w = torch.tensor([[-1.0, 0.0, 0.5, 2.0]])
    found = round_to_nearest(w, Scheme(2, None))
    assert found.scales.tolist() == [[1.0]]
    assert found.zeros.tolist() == [[1]]
    assert found.codes.tolist() == [[0, 1, 1, 3]]  # 0.5 goes to the even neighbour
    symmetric = round_to_nearest(w, Scheme(2, None, symmetric=True))
    assert symmetric.zeros.tolist() == [[2]]
    assert symmetric.scales.item() == pytest.approx(4 / 3, rel=1e-3)
    assert symmetric.codes.tolist() == [[1, 2, 2, 3]]


def test_groups_know_nothing_of_each_other():
    w = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    whole = round_to_nearest(w, Scheme(4, 32)).dequantize()
    for part, own in zip(w.split(32, 1), whole.split(32, 1), strict=True):
        assert torch.equal(round_to_nearest(part, Scheme(4, None)).dequantize(), own)


def test_rows_are_a_copy():
    w = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    whole = round_to_nearest(w, Scheme())
    part = whole.rows(2, 4)
    assert torch.equal(part.dequantize(), whole.dequantize()[2:4])
    part.codes.zero_()
    assert torch.equal(whole.codes, round_to_nearest(w, Scheme()).codes)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.full((4, 64), float("nan")), "NaN or infinity"),
        (torch.full((4, 64), float("-inf")), "NaN or infinity"),
        (torch.zeros(64), r"matrix \(out, in\), got \(64,\)"),
        (torch.zeros(2, 2, 64), "expected a matrix"),
        (torch.zeros(0, 64), r"got \(0, 64\)"),
        (torch.zeros(4, 0), r"got \(4, 0\)"),
        (torch.zeros(4, 63), "63 inputs are fewer than a group of 64"),
        (torch.full((4, 64), 1e30), "span 1.0e.30.*16 bits"),
        (torch.tensor([[-3e38, 3e38] * 32]), "can't be stored in 16 bits"),
    ],
)
def test_weights_that_cant_be_quantized(weight, says):
    with pytest.raises(QuantizationError, match=says):
        round_to_nearest(weight, Scheme())


def test_the_name_is_in_the_message():
    with pytest.raises(QuantizationError, match=r"^layer\.3: 8 inputs"):
        affine.require_matrix(torch.zeros(4, 8), Scheme(), "layer.3")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"bits": 1}, "bits=1: use one of"),
        ({"bits": 16}, "bits=16"),
        ({"group": 0}, "group=0: use 32"),
        ({"group": -1}, "or None"),
        ({"damping": 0.0}, "damping=0.0: use about 0.01"),
        ({"damping": 1.0}, "damping=1.0"),
        ({"damping": float("nan")}, "damping=nan"),
    ],
)
def test_schemes_that_have_no_meaning(setting, says):
    with pytest.raises(QuantizationError, match=says):
        Scheme(**setting)


def test_schemes_say_what_they_are():
    assert str(Scheme()) == "4 bits, group 64"
    long = Scheme(3, None, symmetric=True, act_order=True)
    assert str(long) == "3 bits, group row, symmetric, act-order"


def test_signal_to_noise_in_decibels():
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    assert affine.sqnr(w, 0.9 * w) == pytest.approx(20)
    assert affine.sqnr(w, 0.99 * w) == pytest.approx(40)
    assert affine.sqnr(w, torch.zeros(1000)) == pytest.approx(0)
    assert affine.sqnr(w, w) > 1000


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_bit_is_worth_six_decibels(symmetric):
    """20·log10(2) = 6.02 with fine steps, a little more with coarse ones."""
    w = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    found = [
        affine.sqnr(w, round_to_nearest(w, Scheme(b, 64, symmetric)).dequantize())
        for b in affine.BITS
    ]
    gains = np.diff(found)
    assert (gains > 5.5).all()
    assert (gains < 8).all()
    assert gains[2:].mean() == pytest.approx(6.1, abs=0.3)


def test_bits_a_weight_counts_scales_and_zeros():
    w = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    four = round_to_nearest(w, Scheme(4, 64))
    three = round_to_nearest(w, Scheme(3, 32))
    assert affine.bits_a_weight([four]) == 4 + (16 + 4) / 64
    assert affine.bits_a_weight([three]) == 3 + (16 + 3) / 32
    mean = (4 + 20 / 64 + 3 + 19 / 32) / 2
    assert affine.bits_a_weight([four, three]) == pytest.approx(mean)
    assert affine.bits_a_weight([]) == 0


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("columns, width", [(96, 32), (95, 32), (33, 32), (7, 64)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_each_column_gets_what_its_group_has(columns, width, shuffled, kind):
    groups = torch.arange(columns) // width
    if shuffled:  # as other libraries' checkpoints have them
        groups = groups[torch.randperm(columns, generator=torch.manual_seed(0))]
    values = torch.rand(5, int(groups.max()) + 1)
    found = over_columns(values, groups.to(kind))
    assert torch.equal(found, values[:, groups])
