"""Calibration: what each method clips."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microbudget.core.errors import QuantizationError
from microbudget.quantization import mapping, observers

every_observer = pytest.mark.parametrize(
    "method", observers.OBSERVERS.values(), ids=list(observers.OBSERVERS)
)


def numbers(seed, n=4000, outliers=True):
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    if outliers:
        x[:3] = torch.tensor([40.0, -35.0, 30.0])
    return x


def error(x, found, bits):
    return float(
        (mapping.affine_mapping(*found, bits).fake_quantize(x) - x).square().mean()
    )


@given(seed=st.integers(0, 1000), bits=st.integers(3, 8))
@settings(max_examples=20)
def test_mse_is_never_worse_than_min_max(seed, bits):
    x = numbers(seed)
    found = {name: method(x, bits) for name, method in observers.OBSERVERS.items()}
    assert found["min_max"] == (float(x.min()), float(x.max()))
    assert error(x, found["mse"], bits) <= error(x, found["min_max"], bits)
    for low, high in found.values():
        assert x.min() - 1e-3 <= low <= 0 <= high <= 40.01


def test_all_but_min_max_clip_outliers_at_four_bits():
    x = numbers(0, 20_000)
    for name, method in observers.OBSERVERS.items():
        low, high = method(x, 4)
        assert (high - low < 40) == (name != "min_max"), name


def test_entropy_keeps_a_short_range_without_outliers_and_knows_the_sign():
    x = numbers(3, 20_000, outliers=False)
    low, high = observers.entropy(x)
    assert low == -high
    assert 1.5 < high <= float(x.abs().max()) + 1e-3
    x = x.relu()
    x[: len(x) // 4] = 0
    low, high = observers.entropy(x)  # not fooled by a ReLU's zeros
    assert low == 0 < 1.5 < high


@every_observer
@pytest.mark.parametrize("x", [torch.empty(0), torch.tensor([1.0, float("nan")])])
def test_nothing_and_nan_are_refused(method, x):
    with pytest.raises(QuantizationError):
        method(x)


@every_observer
def test_a_constant_is_no_reason_to_fail(method):
    low, high = method(torch.full((100,), 3.0))
    assert low <= 3.0 <= high + 1e-2
