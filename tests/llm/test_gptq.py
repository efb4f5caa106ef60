"""GPTQ: better than rounding, the paper's equations, and Hessians of all kinds."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from microbudget.core.errors import QuantizationError
from microbudget.llm.gptq import gptq_layer, hessian, inverse_cholesky, output_error
from microbudget.quantization.affine import QuantConfig, grid, round_to_nearest

seeds = st.integers(0, 2**32)


def inputs(seed: int = 0, width: int = 64, tokens: int = 1024) -> torch.Tensor:
    """Gaussian, and correlated: every input mixes others."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(tokens, width, generator=generator) @ mix


def weight(seed: int = 1, width: int = 64, outputs: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, width, generator=generator)


def column_by_column(w, h, config: QuantConfig) -> torch.Tensor:
    """OBQ in GPTQ's order, float64: equations 2 and 3, with the inverse itself.

    One grid a row (group_size=None), or grids of the weights as they are (act_order).
    """
    w, h = w.double().clone(), h.double().clone()
    columns = w.shape[1]
    width = config.group_size or columns
    assert config.act_order or config.group_size is None
    grids = [grid(part, config) for part in w.float().split(width, 1)]
    h += config.damping * h.diagonal().mean() * torch.eye(columns, dtype=h.dtype)
    order = torch.arange(columns)
    if config.act_order:
        order = h.diagonal().argsort(descending=True, stable=True)
    inverse, rounded = torch.linalg.inv(h), torch.zeros_like(w)
    for q in order.tolist():
        scale, zero = (part.double() for part in grids[q // width])
        code = (torch.round(w[:, q] / scale) + zero).clamp(0, config.q_max)
        rounded[:, q] = scale * (code - zero)
        error = (w[:, q] - rounded[:, q]) / inverse[q, q]
        w -= error[:, None] * inverse[q]  # equation 2
        row = inverse[q].clone()
        inverse -= row[:, None] * row[None] / row[q]  # equation 3
    return rounded


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
@settings(max_examples=15)
@given(seeds, st.sampled_from([32, 64, None]), st.booleans())
def test_outputs_stay_nearer_than_with_rounding(
    bits, act_order, seed, group, symmetric
):
    config = QuantConfig(bits, group, symmetric, act_order)
    w, h = weight(seed + 1), hessian(inputs(seed))
    rounded = output_error(w, round_to_nearest(w, config).dequantize(), h)
    assert output_error(w, gptq_layer(w, h, config).dequantize(), h) < 0.95 * rounded


@settings(max_examples=30)
@given(
    seeds, st.sampled_from([2, 3, 4, 8]), st.sampled_from([8, 32, 48, None]),
    st.booleans(), st.booleans(), st.sampled_from([0.25, 1.0, 3.7, 1e4]),
)  # fmt: skip
@example(116, 8, 48, True, False, 0.25)  # 128 + w/s is a tie, w/s isn't quite
def test_inputs_that_are_independent_leave_rounding(
    seed, bits, group, symmetric, act_order, size
):
    """H = c·I: no column can compensate another."""
    w, config = weight(seed, 80), QuantConfig(bits, group, symmetric, act_order)
    found = gptq_layer(w, size * torch.eye(80), config)
    plain = round_to_nearest(w, config)
    for part in ("codes", "scales", "zero_points", "groups"):
        assert torch.equal(getattr(found, part), getattr(plain, part)), part


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig(4, None),
        QuantConfig(2, None, symmetric=True),
        QuantConfig(3, None, act_order=True),
        QuantConfig(4, 32, act_order=True),
        QuantConfig(3, 32, symmetric=True, act_order=True, damping=0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [64, 100])
def test_it_is_the_papers_loop_over_columns(width, config):
    """Blocks and a Cholesky factor in float32 change speed, not results."""
    w, h = weight(3, width, 128), hessian(inputs(4, width))
    found = gptq_layer(w, h, config).dequantize()
    expected = column_by_column(w, h, config)
    same = torch.isclose(found.double(), expected, atol=1e-6)
    assert same.double().mean() > 0.99  # all but ties that fall the other way
    error = output_error(w, found, h)
    assert error == pytest.approx(output_error(w, expected, h), rel=0.02)


@pytest.mark.parametrize(
    "config", [QuantConfig(4, 16), QuantConfig(3, 24), QuantConfig(3, 40)], ids=str
)
def test_a_group_gets_its_grid_when_it_is_reached(config):
    """Without act-order: a grid for the weights as earlier groups' errors left them."""
    w, h = weight(5, 80), hessian(inputs(6, 80))
    found = gptq_layer(w, h, config)
    upper = inverse_cholesky(h, config.damping).double()
    left, done, same = w.double().clone(), found.dequantize().double(), 0
    for j in range(80):
        if j % config.group_size == 0:
            group = j // config.group_size
            scale, zero = grid(left[:, j : j + config.group_size].float(), config)
            stored = found.scales[:, group].float()
            torch.testing.assert_close(stored, scale, rtol=2e-3, atol=0)
            assert (found.zero_points[:, group] - zero).abs().max() <= 1
        code = (left[:, j] / stored).round() + found.zero_points[:, group]
        same += (code.clamp(0, config.q_max) == found.codes[:, j]).sum()
        error = (left[:, j] - done[:, j]) / upper[j, j]
        left -= error[:, None] * upper[j]
    assert same > 0.99 * w.numel()  # all but ties that fall the other way


def test_arguments_are_left_as_they_are():
    w, h = weight(), hessian(inputs())
    h[5] = h[:, 5] = 0
    copies = w.clone(), h.clone()
    gptq_layer(w, h, QuantConfig(act_order=True))
    assert torch.equal(w, copies[0])
    assert torch.equal(h, copies[1])


@pytest.mark.parametrize("act_order", [False, True])
def test_half_precision_weights_are_rounded_as_floats(act_order):
    w, h, config = (
        weight().bfloat16(),
        hessian(inputs()),
        QuantConfig(act_order=act_order),
    )
    assert torch.equal(
        gptq_layer(w, h, config).codes, gptq_layer(w.float(), h, config).codes
    )


@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_that_are_always_zero_get_zero_weights(act_order):
    x, w = inputs(), weight()
    dead = [0, 7, 31, 32, 63]
    x[:, dead] = 0
    h = hessian(x)
    found = gptq_layer(w, h, QuantConfig(4, 32, act_order=act_order)).dequantize()
    assert (found[:, dead] == 0).all()
    assert (found != 0).any(0).sum() == 64 - len(dead)
    assert torch.isfinite(found).all()
    plain = round_to_nearest(w, QuantConfig(4, 32)).dequantize()
    assert output_error(w, found, h) < output_error(w, plain, h)


def test_fewer_tokens_than_inputs_are_damped():
    """A singular Hessian isn't an error with ordinary damping."""
    w, x = weight(), inputs(tokens=10)
    found = gptq_layer(w, hessian(x), QuantConfig(4, 32)).dequantize()
    plain = round_to_nearest(w, QuantConfig(4, 32)).dequantize()
    assert output_error(w, found, hessian(x)) < output_error(w, plain, hessian(x))


@pytest.mark.parametrize("width", [8, 200, 256, 300, 520])
def test_the_hessian_is_two_over_n_times_the_inputs_products(width):
    x = torch.randn(40, width, generator=torch.Generator().manual_seed(width))
    h = hessian(x)
    torch.testing.assert_close(h, 2 / 40 * x.T @ x, rtol=1e-4, atol=1e-5)
    assert torch.equal(h, h.T)
    assert torch.equal(h, hessian(x.reshape(4, 10, width)))  # sequences are just tokens
    assert hessian(x.bfloat16()).dtype == torch.float32


@given(seeds)
@settings(max_examples=20)
def test_the_error_is_that_of_the_outputs(seed):
    x, w = inputs(seed, tokens=200), weight(seed + 1)
    rounded = round_to_nearest(w, QuantConfig(3, 32)).dequantize()
    expected = (x @ (w - rounded).T).square().sum(1).mean()
    found = output_error(w, rounded, hessian(x))
    assert found == pytest.approx(float(expected), rel=1e-3)
    assert output_error(w, w, hessian(x)) == 0


def test_the_factor_is_of_the_damped_inverse():
    h = hessian(inputs())
    upper = inverse_cholesky(h, 0.05)
    assert torch.equal(upper, upper.triu())
    damped = h + 0.05 * h.diagonal().mean() * torch.eye(64)
    torch.testing.assert_close(
        upper.T @ upper @ damped, torch.eye(64), rtol=0, atol=2e-3
    )


def test_shapes_that_dont_fit():
    with pytest.raises(QuantizationError, match="expected a matrix"):
        gptq_layer(weight()[0], torch.eye(64), QuantConfig())
    with pytest.raises(QuantizationError, match="64 inputs are fewer than"):
        gptq_layer(weight(), torch.eye(64), QuantConfig(group_size=128))


@pytest.mark.parametrize(
    "h", [torch.full((64, 64), torch.nan), torch.ones(64, 64), torch.zeros(64, 64)]
)
def test_hessians_without_an_inverse(h):
    with pytest.raises(
        QuantizationError, match=r"64 × 64\) is not finite, or singular"
    ):
        gptq_layer(weight(), h, QuantConfig(damping=1e-12))
