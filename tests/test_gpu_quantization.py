"""What only a GPU can show of quantization; `pytest -m gpu`."""

import pytest
import torch

from microbudget.data import prose
from microbudget.evaluation import generation, language
from microbudget.models import llm
from microbudget.quantization import layerwise, native
from microbudget.quantization.affine import Scheme

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    return llm.load(dtype=torch.float32)


def calibration(small):
    text = prose.load().calibration
    return prose.calibration_ids(small.tokenizer, text, 16, 256)


def perplexity(model, small):
    windows = prose.windows(small.tokenizer, prose.load().held_out, 4, 256)
    return language.read(lambda ids: model(ids.cuda()).logits, windows).perplexity


def test_gptq_on_the_gpu_is_as_good_as_on_the_cpu(small, monkeypatch):
    original, ids = perplexity(small.model, small), calibration(small)
    layerwise.quantize(small.model, ids.cuda(), Scheme(4, 64, act_order=True))
    on_gpu = perplexity(small.model, small)
    assert original < on_gpu < 1.15 * original


def test_a_model_in_main_memory_is_quantized_on_the_gpu_layer_by_layer(small):
    original, ids = perplexity(small.model, small), calibration(small)
    small.model.cpu()
    torch.cuda.reset_peak_memory_stats()
    layerwise.quantize(small.model, ids.cuda(), Scheme(4, 64, act_order=True))
    assert next(small.model.parameters()).device.type == "cpu"
    small.model.cuda()
    assert original < perplexity(small.model, small) < 1.15 * original


def test_torchaos_packed_four_bits(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    model = llm.load(dtype=torch.bfloat16).model
    native.int4_weights(model)
    ids = torch.arange(100, 164)[None].cuda()
    assert generation.measure(model, ids, 4, repeats=1).decode > 0
