"""A model as GGUF: llama.cpp reads the same tokens and computes torch's logits."""

import errno

import gguf
import numpy as np
import pytest
import tiny_llm
import torch

from microbudget import assets
from microbudget.assets.gguf_file import read_gguf
from microbudget.core.errors import QuantizationError
from microbudget.llm import gguf as gguf_convert
from microbudget.llm.engines import llama_cpp
from microbudget.models import smollm as llms
from microbudget.models.smollm import Llm


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return gguf_convert.write_gguf(tiny_llm.llm(hidden=64), path)


@pytest.fixture
def cpp():
    return pytest.importorskip("cyllama")


def tiny(**options) -> Llm:
    return tiny_llm.llm(hidden=64, layers=1, **options)


def farthest(llm: Llm, path, tokens: int = 60) -> float:
    """The largest difference of llama.cpp's logits to torch's, in their deviations."""
    gguf_convert.write_gguf(llm, path)
    ids = tiny_llm.ids(tokens)
    with torch.inference_mode(), llama_cpp.Model(path) as theirs:
        wanted = llm.model(ids).logits
        return float((theirs.scorer(ids) - wanted).abs().max() / wanted.std())


@pytest.mark.parametrize(
    "options",
    [
        {}, {"hidden": 256}, {"tie_word_embeddings": False},
        {"num_key_value_heads": 1},
        {"num_attention_heads": 8, "num_key_value_heads": 8},
        {"attention_bias": True, "mlp_bias": True}, {"rms_norm_eps": 0.1},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        {"head_dim": 32}, {"vocab_size": 400},
    ],
    ids=str,
)  # fmt: skip
def test_llama_cpp_computes_the_same_logits(cpp, tmp_path, options):
    """Wrong rows of queries or keys would put them whole deviations apart."""
    llm = tiny_llm.llm(**{"hidden": 64, **options})
    for name, parameter in llm.model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    assert farthest(llm, tmp_path / "m.gguf") < 0.03


def test_rows_of_queries_and_keys_matter(cpp, tmp_path, monkeypatch):
    """The check before would notice."""
    monkeypatch.setattr(gguf_convert, "to_llama_cpp_rows", lambda weight, heads: weight)
    assert farthest(tiny_llm.llm(hidden=64), tmp_path / "m.gguf") > 0.3


def test_reordered_rows_by_hand():
    found = gguf_convert.to_llama_cpp_rows(np.arange(12), 2)
    assert found.tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_the_tensors_are_the_models(path):
    state = tiny_llm.llm(hidden=64).model.state_dict()
    found = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    assert len(found) == len(state) - 1  # the head is tied
    assert all(array.dtype == f"f{4 / array.ndim:.0f}" for array in found.values())
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm",
             "blk.1.attn_output": "model.layers.1.self_attn.o_proj",
             "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
             "blk.1.ffn_norm": "model.layers.1.post_attention_layernorm"}  # fmt: skip
    for theirs, ours in names.items():
        wanted = state[f"{ours}.weight"].numpy()
        assert (found[f"{theirs}.weight"] == wanted).all(), ours  # exact


def test_what_the_file_says_of_the_model(path):
    said = read_gguf(path).metadata
    model = {"block_count": 2, "embedding_length": 64, "feed_forward_length": 128,
             "attention.head_count": 4, "attention.head_count_kv": 2,
             "context_length": 512, "vocab_size": 384}  # fmt: skip
    assert {name: said[f"llama.{name}"] for name in model} == model
    assert said["tokenizer.ggml.bos_token_id"] == 1
    assert said["tokenizer.ggml.eos_token_id"] == 2
    assert said["tokenizer.ggml.unknown_token_id"] == 0
    assert said["tokenizer.chat_template"] == tiny_llm.TEMPLATE
    assert said["tokenizer.ggml.token_type"].count(gguf.TokenType.CONTROL) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7e4])
def test_weights_that_float16_cant_hold(tmp_path, value):
    llm = tiny()
    llm.model.model.layers[0].mlp.up_proj.weight[3, 5] = value
    with pytest.raises(QuantizationError, match=r"0\.mlp\.up_proj.*beyond float16's"):
        gguf_convert.write_gguf(llm, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [{"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
     {"hidden_act": "gelu"}, {"model_type": "bert"}],
    ids=str,
)  # fmt: skip
def test_models_of_another_kind(tmp_path, options):
    llm = tiny()
    for name, value in options.items():
        setattr(llm.model.config, name, value)
    with pytest.raises(QuantizationError, match="Only plain Llamas"):
        gguf_convert.write_gguf(llm, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_tensors_without_a_counterpart(tmp_path):
    llm = tiny()
    llm.model.classifier = torch.nn.Linear(3, 4)
    with pytest.raises(QuantizationError, match="no name for the tensor 'classifier"):
        gguf_convert.write_gguf(llm, tmp_path / "m.gguf")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "old.gguf").write_bytes(b"before")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    for name in ("old.gguf", "new.gguf"):
        with pytest.raises(QuantizationError, match="The disk is full"):
            gguf_convert.write_gguf(tiny(), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["old.gguf"]
    assert (tmp_path / "old.gguf").read_bytes() == b"before"


@pytest.mark.slow
def test_the_courses_model(cpp, tmp_path):
    if assets.locate(llms.DEFAULT) is None:
        pytest.skip("the small LLM isn't here")
    llm = llms.load(dtype=torch.float32)
    path = gguf_convert.write_gguf(llm, tmp_path / "smol.gguf")
    file = read_gguf(path)
    assert file.weights == 134_515_008
    assert len(file.tensors) == 272
    assert file.bits == pytest.approx(16, abs=0.3)
    assert file.metadata["tokenizer.ggml.pre"] == "smollm"
    text = "The capital of France is Paris, and the capital of Italy is Rome."
    ids = torch.tensor([tiny_llm.ids_of(llm.tokenizer, text)])
    with torch.inference_mode(), llama_cpp.Model(path) as theirs:
        assert theirs._vocabulary.tokenize(text, False, True) == ids[0].tolist()
        found, wanted = theirs.scorer(ids), llm.model(ids).logits
    assert (found - wanted).abs().max() < 0.03 * wanted.std()
    assert (found.argmax(-1) == wanted.argmax(-1)).double().mean() > 0.9
