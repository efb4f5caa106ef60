"""Bits of floats and whole numbers, against torch's own conversions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microbudget.quantization import formats

FLOATS = [name for name in formats.FORMATS if name != "int8"]


@pytest.mark.parametrize("name", FLOATS)
@given(value=st.floats(-400, 400, width=32))
def test_the_bits_mean_the_value_that_torch_stores(name, value):
    bits = formats.to_bits(value, name)
    stored = float(torch.tensor(value).to(formats.FORMATS[name][0]))
    assert bits.value == stored
    assert formats.from_bits(bits) == stored


@given(value=st.integers(-200, 200))
def test_whole_numbers_are_twos_complement_and_clipped(value):
    bits = formats.to_bits(value, "int8")
    assert formats.from_bits(bits) == bits.value == max(-128, min(127, value))
    assert int(bits.sign + bits.mantissa, 2) == bits.value % 256


@pytest.mark.parametrize(
    ("value", "name", "bits"),
    [(1.0, "float32", "0" + "01111111" + "0" * 23),
     (-2.0, "float16", "1" + "10000" + "0" * 10),
     (448.0, "float8 e4m3", "0" + "1111" + "110"),
     (-1, "int8", "1" * 8)],
)  # fmt: skip
def test_known_bits(value, name, bits):
    found = formats.to_bits(value, name)
    assert found.sign + found.exponent + found.mantissa == bits


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float8 e5m2"])
def test_infinity_and_nan(name):
    assert formats.from_bits(formats.to_bits(math.inf, name)) == math.inf
    assert math.isnan(formats.from_bits(formats.to_bits(math.nan, name)))


def test_every_float8_is_listed_once_and_means_itself():
    listed = formats.representable_numbers(-1000, 1000, "float8 e4m3")
    assert len(listed) == 253  # 256 less two NaN and the second zero
    for value in listed.tolist():
        assert formats.to_bits(value, "float8 e4m3").value == value
