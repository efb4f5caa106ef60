"""Packing: the bit stream, the way back, and linear layers that compute from it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from microbudget.core.errors import QuantizationError
from microbudget.llm.packed import PackedLinear
from microbudget.llm.packing import pack, require_packable, unpack
from microbudget.quantization.affine import QuantConfig, round_to_nearest


@st.composite
def numbers(draw, dimensions: int = 3):
    """(bits, codes): uint8 (n, …) with n·bits a multiple of 32."""
    bits = draw(st.integers(2, 8))
    step = {2: 16, 4: 8, 6: 16, 8: 4}.get(bits, 32)
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


def matrix(bits=4, outputs=32, inputs=64, group=32, seed=0, symmetric=False):
    w = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    return round_to_nearest(w, QuantConfig(bits, group, symmetric))


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


@given(st.integers(2, 8), st.data())
def test_any_words_are_some_codes(bits, data):
    words = data.draw(arrays(np.int32, (bits, 2)))  # 32 numbers a column
    words = torch.from_numpy(words)
    assert torch.equal(pack(unpack(words, bits), bits), words)


def test_columns_are_packed_on_their_own():
    codes = torch.randint(8, (64, 5), generator=torch.Generator().manual_seed(0))
    columns = [pack(column, 3) for column in codes.T]
    assert torch.equal(pack(codes, 3), torch.stack(columns, 1))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_packed_layer_computes_what_it_says(bits, symmetric):
    found = matrix(bits, symmetric=symmetric)
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


def test_there_is_nothing_to_train():
    packed = PackedLinear.pack(matrix())
    assert list(packed.parameters()) == []
    assert not packed(torch.ones(1, 64)).requires_grad


@pytest.mark.parametrize(
    ("inputs", "outputs", "bits", "says"),
    [
        (64, 64, 5, "5 bits can't be packed: use 2, 3, 4 or 8"),
        (60, 64, 4, "60 inputs and 64 outputs can't be packed in 4 bits.*of 8"),
        (64, 20, 3, "multiples of 32"),
        (8, 16, 2, "multiples of 16"),
        (6, 8, 8, "multiples of 4"),
    ],
)
def test_shapes_that_dont_fill_words(inputs, outputs, bits, says):
    with pytest.raises(QuantizationError, match=says):
        require_packable(inputs, outputs, bits)


def test_shapes_that_fill_words():
    for bits, step in ((2, 16), (3, 32), (4, 8), (8, 4)):
        require_packable(step, 3 * step, bits)
