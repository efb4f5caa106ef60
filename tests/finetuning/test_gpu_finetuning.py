"""What only a GPU can show of fine-tuning; `pytest -m gpu`."""

import peft
import pytest
import torch
from sentences import sentences

from microbudget.finetuning import methods
from microbudget.models import bert
from microbudget.training import text_classifier

LORA = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_qlora_learns_with_the_paged_optimizer(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    model = bert.load().classifier(2, four_bit=True)
    methods.apply_(model, LORA)
    made = text_classifier.optimizer(model, 1e-3)(
        [p for p in model.parameters() if p.requires_grad]
    )
    assert "Paged" in type(made).__name__
    history = text_classifier.train(
        model, sentences(8), text_classifier.FinetuneConfig(2e-3, 5, 8)
    )
    assert history.losses[-1] < 0.7 * history.losses[0]


def test_merged_equals_unmerged_on_the_gpu(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    model = bert.load().classifier(2)
    methods.apply_(model, LORA)
    config = text_classifier.FinetuneConfig(2e-3, 1, 8)
    text_classifier.train(model, sentences(8), config)
    before = text_classifier.predict(model, sentences(), precision="no")
    methods.merge_(model)
    after = text_classifier.predict(model, sentences(), precision="no")
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
