"""GPTQModel reads our checkpoints, and we read its: `pytest -m slow`, where it is."""

import copy
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


@pytest.mark.parametrize("act_order", [False, True])
def test_one_layer_by_both(act_order):
    """With groups fitted beforehand (act-order) nearly every weight is the same."""
    from gptqmodel.quantization.gptq import GPTQ

    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 96, bias=False).requires_grad_(False)
    inputs = torch.randn(1, 4096, 128) @ (0.3 * torch.randn(128, 128) + torch.eye(128))
    settings = gptqmodel.QuantizeConfig(
        bits=4, group_size=32, sym=False, desc_act=act_order, damp_percent=0.01,
        act_group_aware=False, static_groups=act_order,
    )  # fmt: skip
    reference = GPTQ(copy.deepcopy(layer), settings)
    reference.quantizer.configure(perchannel=True)
    reference.add_batch(inputs, layer(inputs))
    theirs = reference.quantize()[0].float()
    h = few_bits.hessian(inputs)
    config = few_bits.QuantConfig(4, 32, act_order=act_order)
    ours = few_bits.gptq_layer(layer.weight, h, config).dequantize()
    error, their_error = (
        few_bits.output_error(layer.weight, rounded, h) for rounded in (ours, theirs)
    )
    assert error < 1.02 * their_error
    if act_order:
        assert ((ours - theirs).abs() < 1e-3).float().mean() > 0.95
        assert error == pytest.approx(their_error, rel=0.02)
