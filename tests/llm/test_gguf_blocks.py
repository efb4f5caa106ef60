"""llama.cpp's simplest blocks of weights: byte for byte, and how far weights move."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from microbudget.core.errors import QuantizationError
from microbudget.llm.gguf_blocks import q4_0, q8_0

FORMATS = {"q8_0": (q8_0, Type.Q8_0), "q4_0": (q4_0, Type.Q4_0)}


def float32(low: float, high: float):
    low, high = (float(np.float32(value)) for value in (low, high))
    return st.floats(low, high, width=32) | st.floats(-high, -low, width=32)


weights = arrays(
    np.float32, st.sampled_from([(1, 32), (3, 64), (2, 2, 96)]),
    elements=st.just(0.0) | float32(1e-20, 1e-3) | float32(1e-3, 6e4),
)  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@given(weights)
def test_blocks_are_llama_cpps_byte_for_byte(name, w):
    encode, kind = FORMATS[name]
    found = encode(w)
    assert found.dtype == np.uint8
    assert found.shape == (w.size // 32, {"q8_0": 34, "q4_0": 18}[name])
    assert found.tobytes() == gguf.quants.quantize(w, kind).tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_gaussian_weights_too(name):
    encode, kind = FORMATS[name]
    for scale in (1e-6, 0.02, 300):
        w = np.random.default_rng(0).normal(size=(64, 256), scale=scale)
        w = w.astype(np.float32)
        assert encode(w).tobytes() == gguf.quants.quantize(w, kind).tobytes()


def test_a_block_by_hand():
    w = np.zeros((1, 32), np.float32)
    w[0, :3] = [-8, 7, 3]
    found = q4_0(w)[0]
    assert found[:2].view(np.float16) == 1  # −8 / −8
    assert found[2:5].tolist() == [0x80, 0x8F, 0x8B]  # weights 16 … 18 are 0, code 8
    assert set(found[5:].tolist()) == {0x88}
    w[0, :3] = [-127, 63.5, 0.5]
    found = q8_0(w)[0]
    assert found[:2].view(np.float16) == 1
    assert found[2:5].view(np.int8).tolist() == [-127, 64, 1]  # halves away from zero


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros(name):
    encode, kind = FORMATS[name]
    w = np.zeros((2, 64), np.float32)
    w[0, 40] = 1  # in the second block only
    blocks = encode(w).reshape(2, -1)
    found = gguf.quants.dequantize(blocks, kind).reshape(2, 64)
    assert found[0, 40] == pytest.approx(1, rel=1e-3)
    assert np.count_nonzero(found) == 1


@pytest.mark.parametrize(("name", "steps"), [("q8_0", 0.5), ("q4_0", 1.0)])
@given(weights)
def test_no_weight_moves_far(name, steps, w):
    """Half a step of max/127; a whole one of max/8 at the end without a code."""
    encode, kind = FORMATS[name]
    found = gguf.quants.dequantize(encode(w).reshape(-1), kind).reshape(-1, 32)
    w = w.reshape(-1, 32)
    step = np.abs(w).max(1, keepdims=True) / {"q8_0": 127, "q4_0": 8}[name]
    rounded = np.abs(w) * 2.0**-10 + 130 * 2.0**-25  # of the scale to float16
    assert (np.abs(found - w) <= steps * step * 1.001 + rounded).all()


@pytest.mark.parametrize("encode", [q8_0, q4_0])
@pytest.mark.parametrize(
    ("w", "says"),
    [
        (np.full((1, 32), np.nan), "NaN or infinity among the weights"),
        (np.full((1, 32), -np.inf), "NaN or infinity"),
        (np.ones((2, 33)), "Rows of 33 weights aren't whole blocks of 32"),
        (np.ones((32, 16)), "Rows of 16"),  # 512 weights, but not of one row
        (np.ones((2, 0)), "Rows of 0"),
        (np.float32(1), "Rows of 0"),
    ],
)  # fmt: skip
def test_weights_without_blocks(encode, w, says):
    with pytest.raises(QuantizationError, match=says):
        encode(np.asarray(w, np.float32))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("encode", [q8_0, q4_0])
def test_weights_whose_scale_float16_cant_hold(encode):
    with pytest.raises(QuantizationError):
        encode(np.full((1, 32), 1e7, np.float32))
