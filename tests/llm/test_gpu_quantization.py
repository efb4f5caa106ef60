"""What only a GPU can show of quantization; `pytest -m gpu`."""

import pytest
import torch

from microbudget.data import prose
from microbudget.evaluation import perplexity as language
from microbudget.llm import QuantConfig, quantize_
from microbudget.models import smollm

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
    quantize_(small.model, ids, QuantConfig(4, 64, act_order=True))
    on_gpu = perplexity(small.model, small)
    assert original < on_gpu < 1.15 * original
