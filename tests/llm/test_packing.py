"""Packing: the bit stream, the way back, and linear layers that compute from it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from microbudget.core.errors import QuantizationError
from microbudget.llm.packed import PackedLinear, pack, unpack
from microbudget.quantization.affine import QuantConfig, round_to_nearest

BITS = st.sampled_from([2, 3, 4, 8])


@st.composite
def numbers(draw, dimensions: int = 3):
    """(bits, codes): uint8 (n, …) with n·bits a multiple of 32."""
    bits = draw(BITS)
    step = {2: 16, 3: 32, 4: 8, 8: 4}[bits]
    n = step * draw(st.integers(0, 3))
    rest = draw(st.lists(st.integers(1, 3), max_size=dimensions - 1))
    elements = st.integers(0, 2**bits - 1)
    codes = draw(arrays(np.uint8, (n, *rest), elements=elements))
    return bits, torch.from_numpy(codes)


def stream(codes: list[int], bits: int) -> list[int]:
    """int32 words of one long whole number: code i starts at bit i·bits."""
    whole = sum(code << (i * bits) for i, code in enumerate(codes))
    words = [(whole >> start) % 2**32 for start in range(0, len(codes) * bits, 32)]
    return [word - 2**32 * (word >= 2**31) for word in words]


def matrix(bits=4, outputs=32, inputs=64, group=32):
    w = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    return round_to_nearest(w, QuantConfig(bits, group))


@given(numbers())
def test_unpacking_brings_everything_back(given_):
    bits, codes = given_
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (len(codes) * bits // 32, *codes.shape[1:])
    assert torch.equal(unpack(words, bits), codes)


@given(numbers(dimensions=1))
def test_the_layout_is_one_stream_of_bits(given_):
    bits, codes = given_
    assert pack(codes, bits).tolist() == stream(codes.tolist(), bits)


@given(BITS, st.data())
def test_any_words_are_some_codes(bits, data):
    words = data.draw(arrays(np.int32, (bits, 2)))  # 32 numbers a column
    words = torch.from_numpy(words)
    assert torch.equal(pack(unpack(words, bits), bits), words)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_packed_layer_computes_what_it_says(bits):
    found = matrix(bits)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(32, generator=torch.Generator().manual_seed(2))
    packed = PackedLinear.pack(found)
    assert torch.equal(packed(x), F.linear(x, found.dequantize()))
    packed.bias = bias
    assert torch.equal(packed(x), F.linear(x, found.dequantize(), bias))
    assert packed(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_packed_layer_gives_its_matrix_back(bits):
    found = matrix(bits)
    back = PackedLinear.pack(found).weight()
    for part in ("codes", "scales", "zero_points", "groups"):
        assert torch.equal(getattr(back, part), getattr(found, part)), part
    assert back.bits == bits


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_state_dict_has_gptqs_names_shapes_and_types(bits):
    state = PackedLinear.pack(matrix(bits, outputs=32, inputs=96)).state_dict()
    assert {n: (tuple(t.shape), t.dtype) for n, t in state.items()} == {
        "qweight": ((96 * bits // 32, 32), torch.int32),
        "qzeros": ((3, bits), torch.int32),
        "scales": ((3, 32), torch.float16),
        "g_idx": ((96,), torch.int32),
    }
    assert state["g_idx"].tolist() == [i // 32 for i in range(96)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "bits"), [
        (64, 64, 5), (60, 64, 4), (64, 20, 3), (8, 16, 2), (6, 8, 8)
    ],
)  # fmt: skip
def test_shapes_that_dont_fill_words(inputs, outputs, bits):
    says = f"{inputs} inputs and {outputs} outputs in {bits} bits can't be packed"
    with pytest.raises(QuantizationError, match=says):
        PackedLinear.pack(matrix(bits, outputs, inputs, group=None))
