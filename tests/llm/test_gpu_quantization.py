"""What only a GPU can show of quantization; `pytest -m gpu`."""

import pytest
import torch

from microbudget.data import prose
from microbudget.evaluation import generation
from microbudget.evaluation import perplexity as language
from microbudget.llm import calibrate, gptq, native
from microbudget.models import smollm
from microbudget.quantization.affine import Scheme

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    return smollm.load(dtype=torch.float32)


def calibration(small):
    text = prose.load().calibration
    return prose.calibration_ids(small.tokenizer, text, 16, 256)


def perplexity(model, small):
    windows = prose.windows(small.tokenizer, prose.load().held_out, 4, 256)
    return language.evaluate_perplexity(
        lambda ids: model(ids.cuda()).logits, windows
    ).perplexity


def test_gptq_on_the_gpu_is_as_good_as_on_the_cpu(small, monkeypatch):
    original, ids = perplexity(small.model, small), calibration(small)
    calibrate.quantize(small.model, ids.cuda(), Scheme(4, 64, act_order=True))
    on_gpu = perplexity(small.model, small)
    assert original < on_gpu < 1.15 * original


def test_a_recorded_block_is_rounded_as_a_plain_one():
    torch.manual_seed(0)
    for turn in range(4):  # two shapes in alternation: each is recorded once
        rows, columns = ((48, 32), (80, 16))[turn % 2]
        w, zero = torch.randn(columns, rows), torch.full((columns, rows), 7.0)
        lower = 0.1 * torch.randn(columns, columns).tril()
        spread = torch.rand(columns) + 1
        block = (w, lower, spread, torch.full_like(w, 0.2), zero)
        block = [tensor.cuda() for tensor in block]
        found = [x.clone() for x in gptq._round_block(*block, 15)]
        for ours, plain in zip(found, gptq._round_columns(*block, 15), strict=True):
            torch.testing.assert_close(ours, plain)


def test_a_model_in_main_memory_is_quantized_on_the_gpu_layer_by_layer(small):
    original, ids = perplexity(small.model, small), calibration(small)
    small.model.cpu()
    torch.cuda.reset_peak_memory_stats()
    calibrate.quantize(small.model, ids.cuda(), Scheme(4, 64, act_order=True))
    assert next(small.model.parameters()).device.type == "cpu"
    small.model.cuda()
    assert original < perplexity(small.model, small) < 1.15 * original


def test_torchaos_packed_four_bits(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    model = smollm.load(dtype=torch.bfloat16).model
    native.int4_weights(model)
    ids = torch.arange(100, 164)[None].cuda()
    assert generation.measure_generation(model, ids, 4, repeats=1).decode > 0
