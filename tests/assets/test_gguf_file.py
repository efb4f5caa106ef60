"""GGUF files: what the reader finds in whole ones, and what it says of damaged ones."""

import os
import struct
from collections import Counter

import gguf
import numpy as np
import pytest
import tiny_llm
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st

from microbudget.assets import gguf_file
from microbudget.core.errors import QuantizationError
from microbudget.llm import gguf as gguf_convert


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small model's file: 300 kB."""
    return gguf_convert.write_f16(
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
    found, theirs = gguf_file.read(path), gguf.GGUFReader(path)
    assert [
        (t.name, t.shape, t.type, t.offset, t.size) for t in found.tensors
    ] == [
        (t.name, tuple(t.shape[::-1].tolist()), t.tensor_type.name,
         int(t.data_offset), int(t.n_bytes))
        for t in theirs.tensors
    ]  # fmt: skip
    assert found.metadata == {
        name: field.contents()
        for name, field in theirs.fields.items()
        if not name.startswith("GGUF.")
    }
    assert found.version == theirs.fields["GGUF.version"].contents() == 3
    assert found.size == path.stat().st_size


def test_every_tensors_bytes(mixed):
    found = gguf_file.read(mixed)
    for tensor in gguf.GGUFReader(mixed).tensors:
        ours = found.data(tensor.name)
        assert ours.dtype == np.uint8
        assert ours.tobytes() == tensor.data.tobytes()
    with pytest.raises(QuantizationError, match=r"mixed\.gguf has no tensor 'none'"):
        found.data("none")


def test_a_file_adds_up(mixed):
    found = gguf_file.read(mixed)
    assert found.types() == Counter({"F32": 1, "F16": 1, "Q8_0": 1, "Q4_0": 1})
    parts = found.bytes_by_type()
    assert sum(parts.values()) == found.size
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    assert found.weights == 3 * 7 + 3 * 3 * 96
    assert found.bits == 8 * found.size / found.weights
    bits = {tensor.name: tensor.bits for tensor in found.tensors}
    assert bits == {"odd": 32, "half": 16, "q8_0": 8.5, "q4_0": 4.5}


def _ends(path) -> dict[str, int]:
    """Where the parts of a file begin."""
    found = gguf_file.read(path)
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
        with pytest.raises(QuantizationError, match=r"d\.gguf is (truncated|damaged)"):
            gguf_file.read(written(tmp_path, content[:length]))


def test_the_truncated_tensor_is_named(path, tmp_path):
    last = gguf_file.read(path).tensors[-1]
    end = last.offset + last.size
    cut = written(tmp_path, path.read_bytes()[: end - 1])
    says = f"has {end - 1:,} bytes, and tensor '{last.name}' ends at {end:,}.*Delete it"
    with pytest.raises(QuantizationError, match=says):
        gguf_file.read(cut)


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
        found = gguf_file.read(written(path.parent, content))
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
    "empty": (b"", "is no GGUF file: it begins with b''"),
    "magic": (b"GGML" + bytes(100), "begins with b'GGML', not b'GGUF'"),
    "half a magic": (b"GG", "no GGUF file"),
    "another format": (b"PK\x03\x04" + bytes(100), "no GGUF file"),
    "version": (header(version=99), "is GGUF version 99; versions 2 and 3"),
    "version 1": (header(version=1), "is GGUF version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "tensors": (header(tensors=2**40), "damaged: 1099511627776 tensors"),
    "keys": (header(keys=2**63), "9223372036854775808 keys"),
    "type of tensor": (entry(kind=99), "'t' has type 99, which the installed gguf"),
    "dimensions": (entry(()), "'t' has 0 dimensions"),
    "five": (entry((1,) * 5), "'t' has 5 dimensions"),
    "no rows": (entry((32, 0)), r"shape \(0, 32\) in blocks of 1"),
    "width": (entry((33,), kind=Type.Q8_0), r"shape \(33,\) in blocks of 32"),
    "huge": (entry((2**62, 2**62)), "truncated: it has"),
    "offset": (entry(offset=2**63), "truncated: it has"),
    "type of value": (header(0, 1, pair(77, b"")), "a value of type 77, near byte 37"),
    "type in array": (header(0, 1, pair(9, struct.pack("<IQ", 77, 1))), "of type 77"),
    "elements": (header(0, 1, pair(9, struct.pack("<IQ", 0, 2**60))), "elements"),
    "characters": (header(0, 1, pair(8, struct.pack("<Q", 2**60))), "characters"),
    "long array": (header(0, 1, pair(9, struct.pack("<IQ", 10, 9**7))), "truncated"),
    "alignment": (
        header(0, 1, pair(4, struct.pack("<I", 0), b"general.alignment")),
        "alignment 0",
    ),
    "alignment of text": (
        header(0, 1, pair(8, struct.pack("<Q", 1) + b"x", b"general.alignment")),
        "alignment 'x'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_refused(tmp_path, case):
    content, says = BAD[case]
    with pytest.raises(QuantizationError, match=says):
        gguf_file.read(written(tmp_path, content))


def test_a_big_endian_file(tmp_path):
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(QuantizationError, match="little-endian order"):
        gguf_file.read(path)


def test_version_2_has_the_same_layout(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[4] = 2
    found = gguf_file.read(written(tmp_path, content))
    assert found.version == 2
    assert found.tensors == gguf_file.read(path).tensors


def test_files_that_cant_be_read(tmp_path):
    with pytest.raises(QuantizationError, match=r"none.* \(No such file"):
        gguf_file.read(tmp_path / "none")
    with pytest.raises(QuantizationError, match="can't be read"):
        gguf_file.read(os.fspath(tmp_path))


def test_arrays_nested_without_end(tmp_path):
    nested = struct.pack("<IQ", 9, 1) * 3000 + struct.pack("<IQ", 4, 0)
    with pytest.raises(QuantizationError, match="damaged"):
        gguf_file.read(written(tmp_path, header(0, 1, pair(9, nested))))


def test_a_vocabulary_alone_has_no_bits_a_weight(tmp_path):
    """Files without tensors exist: llama.cpp's own ggml-vocab-*.gguf."""
    found = gguf_file.read(written(tmp_path, header()))
    assert found.weights == 0
    assert str(found.bits)  # any answer, but no exception
