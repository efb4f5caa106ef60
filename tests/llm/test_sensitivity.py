"""Sensitivity to rounding, what decoding must read, where its time goes, torchao."""

import copy
from functools import partial

import pytest
import tiny_llm
import torch

from microbudget.core.errors import EvaluationError, QuantizationError
from microbudget.evaluation import perplexity as language
from microbudget.evaluation import profiling, roofline
from microbudget.evaluation.generation import measure_generation
from microbudget.llm import calibrate, checkpoint, sensitivity, torchao
from microbudget.models.smollm import Llm
from microbudget.quantization.affine import QuantConfig, round_to_nearest, sqnr

THREE = QuantConfig(3, 32)
KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def model():
    return tiny_llm.llama(hidden=64)


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model(tiny_llm.ids()).logits


def perplexity(model) -> float:
    return language.evaluate_perplexity(
        lambda ids: model(ids).logits, tiny_llm.ids()
    ).perplexity


def unchanged(model, before: dict) -> bool:
    state = model.state_dict()
    return before.keys() == state.keys() and all(
        torch.equal(state[name].view(torch.int32), tensor.view(torch.int32))
        for name, tensor in before.items()
    )


def test_names(model):
    found = sensitivity.weights_by_kind(model)
    assert [*found] == [*KINDS, "embeddings"]
    assert found["embeddings"] == ["model.embed_tokens.weight"]  # the head is the same
    assert all(len(found[kind]) == 2 for kind in KINDS)
    layers = sensitivity.weights_by_layer(model)
    assert [*layers] == [0, 1]
    assert all(n.startswith(f"model.layers.{i}.") for i in layers for n in layers[i])
    both = {name for kind in KINDS for name in found[kind]}
    assert both == {name for names in layers.values() for name in names}
    assert both <= set(dict(model.named_parameters()))


def by_hand(model, names, config) -> float:
    other = copy.deepcopy(model)
    parameters = dict(other.named_parameters())
    for name in names:
        weight = parameters[name]
        weight.copy_(round_to_nearest(weight, config).dequantize())
    return perplexity(other)


@pytest.mark.parametrize(
    "split", [sensitivity.weights_by_layer, sensitivity.weights_by_kind]
)
def test_one_part_at_a_time_is_by_hand(model, split):
    before = copy.deepcopy(model.state_dict())
    parts = split(model)
    found = sensitivity.measure_sensitivity(
        model, parts, THREE, partial(perplexity, model)
    )
    assert unchanged(model, before)
    assert found == {
        part: by_hand(model, names, THREE) for part, names in parts.items()
    }
    assert len(set(found.values())) == len(found)
    assert perplexity(model) not in found.values()


def test_weights_come_back_whatever_happens(model):
    before, called = copy.deepcopy(model.state_dict()), []

    def score() -> float:
        called.append(unchanged(model, before))
        if len(called) == 2:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        sensitivity.measure_sensitivity(
            model, sensitivity.weights_by_kind(model), THREE, score
        )
    assert called == [False, False]
    assert unchanged(model, before)


def test_parts_that_cant_be_rounded(model):
    names = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    before = copy.deepcopy(model.state_dict())
    act = partial(sensitivity.measure_sensitivity, model, score=float)
    with pytest.raises(QuantizationError, match="matrix"):
        act({"a": names}, config=THREE)
    with pytest.raises(QuantizationError, match="64 inputs are fewer"):
        act({"a": names[:1]}, config=QuantConfig(3, 128))
    assert unchanged(model, before)


def test_a_bit_is_worth_six_decibels_in_every_layer(model):
    found = {
        bits: sensitivity.weight_noise(model, QuantConfig(bits, 32))
        for bits in (3, 4, 5, 8)
    }
    assert len(found[4]) == 14
    for name, decibels in found[4].items():
        assert 5.5 < decibels - found[3][name] < 8
        assert 5.5 < found[5][name] - decibels < 7
        assert 17 < found[8][name] - found[5][name] < 20
    name, linear = "model.layers.1.mlp.up_proj", model.model.layers[1].mlp.up_proj
    rounded = round_to_nearest(linear.weight, QuantConfig(4, 32)).dequantize()
    assert found[4][name] == sqnr(linear.weight, rounded)


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_that_a_token_reads(tied):
    """All weights once; of an embedding that isn't the head, one row: left out."""
    model = tiny_llm.llama(hidden=64, tie_word_embeddings=tied)
    table, buffers = tiny_llm.VOCABULARY * 64, sum(b.nbytes for b in model.buffers())
    a_layer = 64 * 64 * (2 + 2 * 0.5) + 3 * 64 * 128 + 2 * 64
    wanted = 4 * (2 * a_layer + 64 + table)
    assert wanted <= roofline.bytes_per_token(model) <= wanted + buffers
    assert buffers < 0.01 * wanted
    half = roofline.bytes_per_token(copy.deepcopy(model).half())
    assert half == pytest.approx(wanted / 2, rel=0.01)


def packed(model, folder):
    """The model with packed layers, as a checkpoint brings it."""
    config = QuantConfig(4, 32)
    llm = Llm("tiny", model, tiny_llm.tokenizer())
    checkpoint.save(llm, folder, calibrate.round_model_(model, config), config)
    return checkpoint.load(folder).model


def test_packed_weights_are_fewer_bytes(model, tmp_path):
    before = roofline.bytes_per_token(model)
    weights = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
    saved = before - roofline.bytes_per_token(packed(model, tmp_path))
    assert 4 * weights * 0.8 < saved < 4 * weights * 7 / 8


def test_memory_has_a_bandwidth():
    assert roofline.memory_bandwidth(size=2**22) > 0


def test_where_time_goes(model):
    ids, calls = tiny_llm.ids(batch=1), []
    found = profiling.time_by_operation(
        lambda: calls.append(measure_generation(model, ids, 3, repeats=1))
    )
    assert tuple(found) == profiling.PARTS
    assert len(calls) == 2
    for part in ("matmul", "attention", "sampling", "other"):
        assert found[part] > 0, part
    assert found["dequantize"] == 0


def test_unpacking_has_a_part_of_its_own(model, tmp_path):
    model = packed(model, tmp_path)
    found = profiling.time_by_operation(lambda: model(tiny_llm.ids()))
    assert found["dequantize"] > 0 < found["matmul"]
    assert found["sampling"] == 0
    alone = profiling.time_by_operation(lambda: torch.ones(64, 64) @ torch.ones(64, 64))
    assert alone["matmul"] > 0
    assert alone["dequantize"] == alone["attention"] == alone["sampling"] == 0


def test_torchaos_eight_bits_stay_near(model):
    before = logits(model)
    assert torchao.int8_weights_(model) is model
    assert sqnr(before, logits(model)) > 30
    assert not torch.equal(before, logits(model))


def test_bytes_that_torchao_doesnt_tell():
    model = torchao.int8_weights_(tiny_llm.llama(hidden=128))
    with pytest.raises(EvaluationError, match="own packed weights"):
        roofline.bytes_per_token(model)
