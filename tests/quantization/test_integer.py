"""A linear map in whole numbers equals its simulation in floats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from microbudget.core.errors import QuantizationError
from microbudget.quantization import integer, mapping


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 5)),
    affinely=st.booleans(),
    keep=st.sampled_from([(), (0,)]),
)
@settings(max_examples=60)
def test_it_is_the_float_simulation(seed, shape, affinely, keep):
    out, n, batch = shape
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, n, generator=generator)
    bias = torch.randn(out, generator=generator)
    x = 3 * torch.randn(batch, n, generator=generator) + 1
    of_x = mapping.affine(*mapping.extent(x), 8)
    of_x = mapping.Mapping(of_x.scale.flatten(), of_x.zero.flatten(), 0, 255)
    of_w = mapping.of_weight(weight, 8, keep, affinely)
    whole = integer.linear(weight, bias, of_x, of_w)
    sums = whole.accumulate(of_x.quantize(x))
    assert sums.dtype == torch.int64  # no float on the way
    step = of_x.scale * of_w.scale.flatten()
    rounded_bias = torch.round(bias / step) * step  # half a step at most
    wanted = F.linear(
        of_x.simulate(x).double(), of_w.simulate(weight).double(), rounded_bias.double()
    )
    torch.testing.assert_close(whole(x).double(), wanted, rtol=1e-4, atol=1e-4)


def test_the_zero_points_are_needed():
    """What the source material leaves out: without them the answer is another."""
    torch.manual_seed(0)
    weight, x = torch.randn(4, 16), torch.rand(2, 16)
    of_x = mapping.affine(torch.tensor([-0.5]), torch.tensor([1.0]))
    of_w = mapping.of_weight(weight, 8, (0,), affinely=True)
    whole = integer.linear(weight, None, of_x, of_w)
    naive = of_x.quantize(x).long() @ whole.weight.long().T
    assert (naive - whole.accumulate(of_x.quantize(x))).abs().min() > 100


@pytest.mark.parametrize(
    ("weight", "x", "keep"),
    [
        (torch.randn(3), torch.tensor([1.0]), ()),
        (torch.randn(3, 4), torch.ones(2), (0,)),
        (torch.randn(3, 4), torch.tensor([1.0]), (0, 1)),
        (torch.randn(4, 4), torch.tensor([1.0]), (1,)),
        (torch.ones(1, 140_000), torch.tensor([1.0]), ()),
    ],
)
def test_what_cant_be_computed_is_said(weight, x, keep):
    of_x, of_w = mapping.affine(-x, x), mapping.of_weight(weight, 8, keep)
    with pytest.raises(QuantizationError):
        integer.linear(weight, None, of_x, of_w)
