"""Affine and symmetric mappings: properties, and torch's own quantizers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microbudget.core.errors import QuantizationError
from microbudget.quantization import mapping

ranges = st.tuples(st.floats(-50, 50), st.floats(-50, 50)).map(sorted)
bits_of = st.integers(2, 8)


def points(mapped, n=200):
    low, high = (float(end) for end in mapped.range)
    return torch.linspace(low, high, n)


@given(ends=ranges, bits=bits_of)
def test_within_the_range_no_number_moves_more_than_half_a_step(ends, bits):
    mapped = mapping.affine_mapping(*ends, bits)
    x = points(mapped)
    moved = (mapped.dequantize(mapped.quantize(x)) - x).abs().max()
    assert moved <= float(mapped.scale) * 0.5001 + 1e-6


@given(ends=ranges, bits=bits_of)
def test_zero_is_represented_exactly_and_quantizing_twice_changes_nothing(ends, bits):
    for mapped in (
        mapping.affine_mapping(*ends, bits),
        mapping.symmetric_mapping(max(map(abs, ends)), bits),
    ):
        zero = torch.zeros(1)
        assert torch.equal(mapped.dequantize(mapped.quantize(zero)), zero)
        once = mapped.dequantize(mapped.quantize(points(mapped)))
        codes = mapped.quantize(once)
        torch.testing.assert_close(mapped.dequantize(codes), once)
        assert int(codes.min()) >= mapped.quant_min
        assert int(codes.max()) <= mapped.quant_max


@given(ends=ranges)
def test_it_is_torchs_affine_quantization(ends):
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    mapped = mapping.affine_mapping(*ends)
    x = torch.linspace(low - 1, high + 1, 301)
    theirs = torch.fake_quantize_per_tensor_affine(
        x, float(mapped.scale), int(mapped.zero_point), 0, 255
    )
    # torch multiplies by 1/S where this divides by S: a tie may fall the other way
    off = (mapped.dequantize(mapped.quantize(x)) - theirs).abs()
    assert off.max() <= float(mapped.scale) * 1.001
    assert (off < 1e-5 * (high - low + 1)).float().mean() > 0.98


def test_a_scale_a_channel_is_torchs():
    w = torch.randn(5, 7, 3, 3)
    mapped = mapping.weight_mapping(w)
    theirs = torch.fake_quantize_per_channel_affine(
        w, mapped.scale.flatten(), mapped.zero_point.flatten(), 0, -127, 127
    )
    torch.testing.assert_close(mapped.fake_quantize(w), theirs)


def test_the_gradient_goes_straight_through_as_torchs_does():
    x = torch.linspace(-3, 3, 101, requires_grad=True)
    mapped = mapping.affine_mapping(-1.0, 2.0)
    mapped.fake_quantize(x).square().sum().backward()
    ours, x.grad = x.grad, None
    theirs = torch.fake_quantize_per_tensor_affine(
        x, float(mapped.scale), int(mapped.zero_point), 0, 255
    )
    theirs.square().sum().backward()
    torch.testing.assert_close(ours, x.grad)
    assert ours[0] == 0  # clipped
    assert ours[50:60].abs().sum() > 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: mapping.affine_mapping(1.0, -1.0),
        lambda: mapping.affine_mapping(float("nan"), 1.0),
        lambda: mapping.affine_mapping(0.0, 1.0, bits=0),
        lambda: mapping.symmetric_mapping(1.0, bits=1),
        lambda: mapping.value_range(torch.empty(0)),
        lambda: mapping.value_range(torch.tensor([1.0, float("inf")])),
    ],
)
def test_what_cant_be_mapped_is_said(wrong):
    with pytest.raises(QuantizationError):
        wrong()


def test_weights_that_are_all_zero_stay_zero():
    mapped = mapping.weight_mapping(torch.zeros(3, 4))
    assert torch.equal(mapped.fake_quantize(torch.zeros(3, 4)), torch.zeros(3, 4))
