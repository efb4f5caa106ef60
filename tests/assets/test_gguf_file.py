"""GGUF files: what the reader finds in whole ones, and what it says of damaged ones."""

import struct
from collections import Counter

import gguf
import numpy as np
import pytest
import tiny_llm
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st

from microbudget.assets.gguf_file import read_gguf
from microbudget.core.errors import QuantizationError
from microbudget.llm import write_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small model's file: 300 kB."""
    return write_gguf(
        tiny_llm.llm(hidden=64, layers=1), tmp_path_factory.mktemp("gguf") / "m.gguf"
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """All types of values and four of tensors, alignment 64."""
    path = tmp_path_factory.mktemp("gguf") / "mixed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    for name, value in {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -300,
                        "uint32": 2**32 - 1, "int32": -(2**31), "uint64": 2**63,
                        "int64": -(2**62), "float32": 0.5, "float64": 0.1,
                        "bool": True, "string": "naïve 日本"}.items():  # fmt: skip
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    writer.add_array("a.words", ["", "é", "x" * 1000])
    writer.add_array("a.numbers", [1.5, -2.5])
    writer.add_array("a.flags", [True, False])
    w = np.random.default_rng(0).normal(size=(3, 96)).astype(np.float32)
    writer.add_tensor("odd", w[:, :7].copy())
    writer.add_tensor("half", w.astype(np.float16))
    for name, kind in {"q8_0": Type.Q8_0, "q4_0": Type.Q4_0}.items():
        writer.add_tensor(name, gguf.quants.quantize(w, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def written(tmp_path, content: bytes):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("which", ["path", "mixed"])
def test_the_reader_finds_what_ggufs_own_finds(which, request):
    path = request.getfixturevalue(which)
    found, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert [
        (t.name, t.shape, t.type, t.offset, t.size) for t in found.tensors
    ] == [
        (t.name, tuple(t.shape[::-1].tolist()), t.tensor_type.name,
         int(t.data_offset), int(t.n_bytes))
        for t in theirs.tensors
    ]  # fmt: skip
    assert found.metadata == {
        name: field.contents() for name, field in theirs.fields.items()
    }
    assert found.metadata["GGUF.version"] == 3
    assert found.size == path.stat().st_size


def test_a_file_adds_up(mixed):
    found = read_gguf(mixed)
    assert found.types() == Counter({"F32": 1, "F16": 1, "Q8_0": 1, "Q4_0": 1})
    assert found.weights == 3 * 7 + 3 * 3 * 96
    assert found.bits == 8 * found.size / found.weights
    bits = {tensor.name: tensor.bits for tensor in found.tensors}
    assert bits == {"odd": 32, "half": 16, "q8_0": 8.5, "q4_0": 4.5}


def _ends(path) -> dict[str, int]:
    """Where the parts of a file begin."""
    found = read_gguf(path)
    return {
        "header": 0,
        "metadata": 24,
        "tensor table": path.read_bytes().index(found.tensors[0].name.encode()) - 8,
        "data": found.tensors[0].offset,
        "end": found.tensors[-1].offset + found.tensors[-1].size,
    }


@pytest.mark.parametrize(
    "part", ["header", "metadata", "tensor table", "data"], ids=lambda p: p.split()[0]
)
def test_truncated_anywhere(path, tmp_path, part):
    ends = _ends(path)
    names = list(ends)
    start, stop = ends[part], ends[names[names.index(part) + 1]]
    content = path.read_bytes()
    lengths = {4 + start, stop - 1, *np.linspace(max(4, start), stop - 1, 60).tolist()}
    for length in sorted({int(n) for n in lengths}):
        with pytest.raises(QuantizationError, match=r"d\.gguf is no GGUF file, or"):
            read_gguf(written(tmp_path, content[:length]))


flips = st.lists(st.tuples(st.integers(0, 2047), st.integers(1, 255)), min_size=1)


@given(flips)
def test_flipped_bytes_are_read_or_refused(path, flips):
    _read_or_refuse(path, flips)


@given(flips)
def test_flipped_bytes_in_all_kinds_of_values(mixed, flips):
    _read_or_refuse(mixed, flips)


def _read_or_refuse(path, flips) -> None:
    content = bytearray(path.read_bytes())
    for place, bits in flips:
        content[place % len(content)] ^= bits
    try:
        found = read_gguf(written(path.parent, content))
    except QuantizationError:
        return
    assert all(t.offset + t.size <= found.size for t in found.tensors)


def header(tensors=0, keys=0, rest=b"", version=3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def entry(shape=(32,), kind=0, offset=0) -> bytes:
    """A tensor 't' in the table, and some data."""
    form = f"<Q1sI{len(shape)}QIQ"
    content = struct.pack(form, 1, b"t", len(shape), *shape, kind, offset)
    return header(1, 0, content + bytes(1000))


def pair(kind: int, value: bytes, key=b"k") -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


BAD = {
    "empty": b"",
    "magic": b"GGML" + bytes(100),
    "half a magic": b"GG",
    "another format": b"PK\x03\x04" + bytes(100),
    "version": header(version=99),
    "tensors": header(tensors=2**40),
    "keys": header(keys=2**63),
    "type of tensor": entry(kind=99),
    "huge": entry((2**40, 2**20)),
    "offset": entry(offset=2**40),
    "type of value": header(0, 1, pair(77, b"")),
    "type in array": header(0, 1, pair(9, struct.pack("<IQ", 77, 1))),
    "elements": header(0, 1, pair(9, struct.pack("<IQ", 0, 2**60))),
    "strings": header(0, 1, pair(9, struct.pack("<IQ", 8, 2**60))),
    "nested": header(0, 1, pair(9, struct.pack("<IQ", 9, 1) * 3000)),
    "alignment": header(0, 1, pair(4, struct.pack("<I", 0), b"general.alignment")),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_refused(tmp_path, case):
    says = (
        r"damaged\.gguf is no GGUF file, or it is damaged or cut short.*fetch it again"
    )
    with pytest.raises(QuantizationError, match=says):
        read_gguf(written(tmp_path, BAD[case]))


def test_files_that_arent_there(tmp_path):
    with pytest.raises(QuantizationError, match=r"none can't be read \(No such file"):
        read_gguf(tmp_path / "none")
    with pytest.raises(QuantizationError, match="can't be read"):
        read_gguf(tmp_path)
