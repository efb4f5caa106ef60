"""A linear layer in integers equals its fake quantization in floats."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from microbudget.quantization import integer, mapping


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 5)),
    symmetric=st.booleans(),
    axes=st.sampled_from([(), (0,)]),
)
@settings(max_examples=60)
def test_it_equals_fake_quantization(seed, shape, symmetric, axes):
    out, n, batch = shape
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, n, generator=generator)
    bias = torch.randn(out, generator=generator)
    x = 3 * torch.randn(batch, n, generator=generator) + 1
    of_x = mapping.affine_mapping(*mapping.value_range(x), 8)
    of_x = mapping.AffineMapping(
        of_x.scale.flatten(), of_x.zero_point.flatten(), 0, 255
    )
    of_w = mapping.weight_mapping(weight, 8, axes, symmetric)
    whole = integer.IntegerLinear(weight, bias, of_x, of_w)
    sums = whole.accumulate(of_x.quantize(x))
    assert sums.dtype == torch.int64  # no float on the way
    step = of_x.scale * of_w.scale.flatten()
    rounded_bias = torch.round(bias / step) * step  # half a step at most
    wanted = F.linear(
        of_x.fake_quantize(x).double(),
        of_w.fake_quantize(weight).double(),
        rounded_bias.double(),
    )
    torch.testing.assert_close(whole(x).double(), wanted, rtol=1e-4, atol=1e-4)
