"""llama.cpp's own quantizer, against the formats and against what it is given."""

import gguf
import numpy as np
import pytest
import tiny_llm
import torch

from microbudget.assets.gguf_file import read_gguf
from microbudget.core.errors import QuantizationError
from microbudget.llm import quantize_gguf, write_gguf
from microbudget.llm.engines import llama_cpp


@pytest.fixture(scope="module")
def f16(tmp_path_factory):
    """Rows of 256 weights, as K-quants need them."""
    path = tmp_path_factory.mktemp("gguf") / "wide.gguf"
    return write_gguf(tiny_llm.llm(), path)


@pytest.fixture(scope="module")
def files(f16):
    """kind -> the model quantized to it."""
    pytest.importorskip("cyllama")
    return {
        kind: quantize_gguf(f16, f16.with_name(f"{kind}.gguf"), kind)
        for kind in llama_cpp.KINDS
    }


def weights(file, name: str) -> np.ndarray:
    """float32, as the file stores them."""
    (tensor,) = [t for t in gguf.GGUFReader(file.path).tensors if t.name == name]
    found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return found.astype(np.float32)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_llama_cpp_writes_the_bytes_of_ggufs_reference(files, kind):
    """Byte for byte what the notebook's functions give, which it compares with gguf."""
    before, compared = files["F16"], 0
    for tensor in gguf.GGUFReader(files[kind].path).tensors:
        if tensor.tensor_type.name == kind:
            expected = gguf.quants.quantize(
                weights(before, tensor.name), tensor.tensor_type
            )
            assert tensor.data.tobytes() == expected.tobytes(), tensor.name
            compared += 1
    assert compared >= 14  # all matrices, in Q4_0 without the embeddings


@pytest.mark.parametrize("kind", llama_cpp.KINDS)
def test_every_kind_gives_a_whole_model(files, kind):
    found = files[kind]
    before = files["F16"]
    assert found == read_gguf(found.path)
    assert [(t.name, t.shape) for t in found.tensors] == [
        (t.name, t.shape) for t in before.tensors
    ]
    assert kind.removesuffix("_M") in found.types()
    with llama_cpp.Model(found.path) as model, llama_cpp.Model(before.path) as whole:
        moved = model.scorer(tiny_llm.ids()) - whole.scorer(tiny_llm.ids())
    assert torch.isfinite(moved).all()
    assert (moved.std() == 0) == (kind == "F16")
    assert kind != "Q8_0" or moved.std() < 0.1  # of logits that deviate by 1.6


def test_fewer_bits_are_fewer_bytes_and_more_noise(files):
    by_size = sorted(files, key=lambda kind: files[kind].size)
    assert by_size == ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0",
                       "F16"]  # fmt: skip
    name = "blk.0.attn_q.weight"
    exact, noise = weights(files["F16"], name), []
    for kind in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"):
        noise.append(np.square(weights(files[kind], name) - exact).mean())
    assert noise == sorted(noise)
    assert noise[0] < 0.001 * np.square(exact).mean()


def test_bits_per_weight_are_the_formats(files):
    bits = {t.type: t.bits for f in files.values() for t in f.tensors}
    assert bits == {"F32": 32, "F16": 16, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5,
                    "Q4_K": 4.5, "Q4_0": 4.5, "Q3_K": 3.4375,
                    "Q2_K": 2.625}  # fmt: skip


def test_narrow_rows_fall_back_visibly(tmp_path):
    """Rows of 64 are no blocks of 256."""
    pytest.importorskip("cyllama")
    source = write_gguf(tiny_llm.llm(hidden=64), tmp_path / "n.gguf")
    found = quantize_gguf(source, tmp_path / "q.gguf", "Q4_K_M")
    assert "Q4_K" not in found.types()
    assert found.types() == {"F32": 5, "Q5_0": 12, "Q8_0": 3}
    assert found.bits > 4.5


def test_the_source_may_be_the_target(f16, tmp_path):
    pytest.importorskip("cyllama")
    path = tmp_path / "m.gguf"
    path.write_bytes(f16.read_bytes())
    assert quantize_gguf(path, path, "Q8_0").types()["Q8_0"] == 15
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_sources_that_are_no_models(tmp_path):
    pytest.importorskip("cyllama")
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(QuantizationError, match="no GGUF file"):
        quantize_gguf(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    assert not (tmp_path / "q.gguf").exists()


def test_what_is_quantized_already_is_refused(files, tmp_path):
    with pytest.raises(QuantizationError, match=r"already \(Q4_K, Q6_K\): start from"):
        quantize_gguf(files["Q4_K_M"].path, tmp_path / "q.gguf", "Q8_0")
    for kind in ("Q9_0", "q8_0", ""):
        with pytest.raises(QuantizationError, match=f"kind='{kind}': use one of F16, "):
            quantize_gguf(files["F16"].path, tmp_path / "q.gguf", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_weights_that_arent_finite(f16, tmp_path, kind, capfd):
    pytest.importorskip("cyllama")
    content, source = bytearray(f16.read_bytes()), tmp_path / "nan.gguf"
    (tensor,) = [t for t in read_gguf(f16).tensors if "0.ffn_up" in t.name]
    content[tensor.offset : tensor.offset + 2] = np.float16("nan").tobytes()
    source.write_bytes(content)
    with pytest.raises(QuantizationError, match=r"not quantize nan\.gguf.*finite"):
        quantize_gguf(source, tmp_path / "q.gguf", kind)
    assert [p.name for p in tmp_path.iterdir()] == ["nan.gguf"]
