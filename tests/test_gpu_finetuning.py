"""What only a GPU can show of fine-tuning; `pytest -m gpu`."""

import pytest
import torch
from sentences import sentences

from microbudget import classification, finetuning
from microbudget.models import encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_qlora_learns_with_the_paged_optimizer(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    model = encoder.load().classifier(2, four_bit=True)
    finetuning.lora(model)
    made = classification.optimizer(model, 1e-3)(
        [p for p in model.parameters() if p.requires_grad]
    )
    assert "Paged" in type(made).__name__
    history = classification.train(model, sentences(8), lr=2e-3, epochs=5, batch_size=8)
    assert history.losses[-1] < 0.7 * history.losses[0]


def test_merged_equals_unmerged_on_the_gpu(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    model = encoder.load().classifier(2)
    finetuning.lora(model)
    classification.train(model, sentences(8), lr=2e-3, epochs=1, batch_size=8)
    before = classification.predict(model, sentences(), precision="no")
    finetuning.merge(model)
    after = classification.predict(model, sentences(), precision="no")
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
