"""GPTQModel reads our checkpoints, and we read its: `pytest -m slow`, where it is."""

import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import pytest
import torch

from microbudget import llm as few_bits
from microbudget.models import smollm as llms

gptqmodel = pytest.importorskip("gptqmodel")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptqmodel_and_transformers_read_our_checkpoint(tmp_path, bits, symmetric):
    """The same logits as ours, through GPTQModel's loader and its torch kernel."""
    llm = llms.load(dtype=torch.float32)
    config = few_bits.QuantConfig(bits, 64, symmetric=symmetric)
    quantized = few_bits.round_model_(llm.model, config)
    few_bits.save(llm, tmp_path / "ours", quantized, config)
    ids = torch.arange(100, 132)[None]
    with torch.inference_mode():
        wanted = llm.model(ids).logits
        model = gptqmodel.GPTQModel.load(
            str(tmp_path / "ours"), device="cpu", backend="torch", dtype=torch.float16
        )
        found = model.model(ids).logits.float()
    noise = (found - wanted).square().mean() / wanted.square().mean()
    assert noise < 1e-3
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() > 0.9
