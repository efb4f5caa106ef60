"""Packing: the bit stream, the way back, and linear maps that compute from it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.nn import functional as F

from microbudget.core.errors import QuantizationError
from microbudget.llm.packed import PackedLinear, pack_model, require_packable
from microbudget.llm.packing import pack, unpack
from microbudget.quantization.affine import Scheme, round_to_nearest


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
    return round_to_nearest(w, Scheme(bits, group, symmetric))


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


@pytest.mark.parametrize(
    ("bits", "share"), [(2, 1 / 4), (3, 3 / 8), (4, 1 / 2), (8, 1)]
)
def test_bytes_really_shrink(bits, share):
    codes = torch.randint(2**bits, (96, 10), generator=torch.Generator().manual_seed(0))
    assert pack(codes, bits).nbytes == share * codes.numel()


def test_columns_are_packed_on_their_own():
    codes = torch.randint(8, (64, 5), generator=torch.Generator().manual_seed(0))
    columns = [pack(column, 3) for column in codes.T]
    assert torch.equal(pack(codes, 3), torch.stack(columns, 1))


@pytest.mark.parametrize(
    ("codes", "bits", "says"),
    [
        ([16] * 8, 4, r"outside 0 … 15 for 4 bits"),
        ([-1] * 8, 4, "outside 0 … 15"),
        ([7] * 31 + [8], 3, "outside 0 … 7"),
        ([0] * 7, 4, "7 numbers of 4 bits: use a multiple of 8"),
        ([0] * 33, 3, "multiple of 32"),
        ([0] * 8, 2, "multiple of 16"),
    ],
)
def test_numbers_that_dont_fit(codes, bits, says):
    with pytest.raises(QuantizationError, match=says):
        pack(torch.tensor(codes), bits)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_packed_map_computes_what_it_says(bits, symmetric):
    found = matrix(bits, symmetric=symmetric)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(32, generator=torch.Generator().manual_seed(2))
    packed = PackedLinear.of(found)
    assert torch.equal(packed(x), F.linear(x, found.dequantize()))
    packed = PackedLinear.of(found, bias)
    assert torch.equal(packed(x), F.linear(x, found.dequantize(), bias))
    assert packed(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_packed_map_gives_its_matrix_back(bits):
    found = matrix(bits)
    back = PackedLinear.of(found).matrix()
    for part in ("codes", "scales", "zeros", "groups"):
        assert torch.equal(getattr(back, part), getattr(found, part)), part
    assert back.bits == bits


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_state_dict_has_gptqs_names_shapes_and_types(bits):
    state = PackedLinear.of(matrix(bits, outputs=32, inputs=96)).state_dict()
    assert {n: (tuple(t.shape), t.dtype) for n, t in state.items()} == {
        "qweight": ((96 * bits // 32, 32), torch.int32),
        "qzeros": ((3, bits), torch.int32),
        "scales": ((3, 32), torch.float16),
        "g_idx": ((96,), torch.int32),
    }
    assert state["g_idx"].tolist() == [i // 32 for i in range(96)]


def test_a_state_dict_fits_an_empty_map_of_the_same_size():
    found = matrix()
    full, empty = PackedLinear.of(found), PackedLinear(64, 32, 4, 2)
    x = torch.ones(1, 64)
    assert torch.equal(empty(x), torch.zeros(1, 32))
    empty.load_state_dict(full.state_dict())
    assert torch.equal(empty(x), full(x))
    assert "64, 32, bits=4" in repr(empty)


def test_there_is_nothing_to_train():
    packed = PackedLinear.of(matrix(), torch.nn.Parameter(torch.ones(32)))
    assert list(packed.parameters()) == []
    assert not packed(torch.ones(1, 64)).requires_grad


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Sequential(nn.Linear(32, 64)))


def test_packing_a_model_replaces_maps_by_name():
    torch.manual_seed(0)
    plain = model()
    found = round_to_nearest(plain[2][0].weight, Scheme(4, 32))
    plain[2][0].weight.data = found.dequantize()
    x = torch.randn(3, 64)
    with torch.no_grad():
        before = plain(x)
        assert pack_model(plain, {"2.0": found}) is plain
        assert torch.equal(plain(x), before)  # its bias came along
    assert isinstance(plain[2][0], PackedLinear)
    assert type(plain[0]) is nn.Linear


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("3", "no '3'"),
        ("2.1", "no '2.1'"),
        ("1", r"1 is a ReLU, not a linear map of shape \(32, 64\)"),
        ("2.0", r"2\.0 is a Linear, not a linear map of shape \(32, 64\)"),
    ],
)
def test_maps_that_arent_there(name, says):
    with pytest.raises(QuantizationError, match=says):
        pack_model(model(), {name: matrix()})


def test_packing_twice_is_refused():
    packed = pack_model(model(), {"0": matrix()})
    with pytest.raises(QuantizationError, match="is a PackedLinear"):
        pack_model(packed, {"0": matrix()})


@pytest.mark.parametrize(
    ("inputs", "outputs", "bits", "says"),
    [
        (64, 64, 5, "5 bits can't be packed: use 2, 3, 4 or 8"),
        (60, 64, 4, "from 60 to 64 can't be packed in 4 bits.*multiples of 8"),
        (64, 20, 3, "multiples of 32"),
        (8, 16, 2, "multiples of 16"),
        (6, 8, 8, "multiples of 4"),
    ],
)
def test_shapes_that_dont_fill_words(inputs, outputs, bits, says):
    with pytest.raises(QuantizationError, match=says):
        require_packable(inputs, outputs, bits)
    with pytest.raises(QuantizationError, match=says):
        PackedLinear(inputs, outputs, bits, 1)


def test_shapes_that_fill_words():
    for bits, step in ((2, 16), (3, 32), (4, 8), (8, 4)):
        require_packable(step, 3 * step, bits)
