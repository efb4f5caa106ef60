"""Bottleneck adapters: nothing at the start, nothing left at the end, and stacks."""

import pytest
import torch
from sentences import classifier, llama, sentences
from torch.nn import functional as F

from microbudget.core.errors import TrainingError
from microbudget.finetuning import bottleneck


def logits(model):
    data = sentences()
    ids, mask, _ = data.collate([data[i] for i in range(8)])
    with torch.inference_mode():
        return model(ids, mask)


def stir(model, name, seed=0):
    """Give an adapter weights that do something."""
    torch.manual_seed(seed)
    for path, parameter in model.named_parameters():
        if f".adapters.{name}." in path:
            torch.nn.init.normal_(parameter, std=0.3)


def test_a_new_adapter_is_exactly_the_identity():
    model = classifier()
    before = logits(model)
    bottleneck.insert_(model, "a", 8)
    assert torch.equal(logits(model), before)


def test_there_is_one_after_attention_and_one_after_the_feed_forward():
    model = classifier(layers=3)
    bottleneck.insert_(model, "a", 8)
    sites = [n for n, m in model.named_modules() if isinstance(m, bottleneck.Adapted)]
    assert len(sites) == 2 * 3
    own = sum(p.numel() for n, p in model.named_parameters() if ".adapters." in n)
    assert own == 6 * (2 * 48 * 8 + 8 + 48)  # Houlsby et al., section 2.1


def test_it_stands_where_houlsby_et_al_put_it():
    """LayerNorm(input + adapter(sub-layer's output)), written out by hand."""
    model = classifier()
    bottleneck.insert_(model, "a", 8)
    stir(model, "a")
    output = model.encoder.encoder.layer[0].output
    inner, residual = torch.randn(2, 5, 96), torch.randn(2, 5, 48)
    adapter = output.dropout.adapters["a"]
    h = output.dense(inner)
    h = h + F.linear(
        F.gelu(F.linear(h, adapter.down.weight, adapter.down.bias)),
        adapter.up.weight, adapter.up.bias,
    )  # fmt: skip
    expected = output.LayerNorm(h + residual)
    torch.testing.assert_close(output(inner, residual), expected)


def test_a_stack_is_applied_in_its_order():
    model = classifier(layers=1)
    for seed, name in enumerate(("a", "b")):
        bottleneck.insert_(model, name, 8)
        stir(model, name, seed)
    site = model.encoder.encoder.layer[0].output.dropout
    h = torch.randn(3, 48)
    bottleneck.activate_(model, ["a", "b"])
    assert torch.equal(site(h), site.adapters["b"](site.adapters["a"](h)))
    bottleneck.activate_(model, ["b", "a"])
    assert torch.equal(site(h), site.adapters["a"](site.adapters["b"](h)))
    bottleneck.activate_(model, [])
    assert torch.equal(site(h), h)


def test_a_llama_has_places_too():
    model = llama()
    ids = torch.tensor([[1, 5, 9]])
    with torch.inference_mode():
        before = model(ids).logits
        bottleneck.insert_(model, "a", 4)
        assert torch.equal(model(ids).logits, before)
        stir(model, "a")
        assert not torch.equal(model(ids).logits, before)
        low = llama().bfloat16()
        bottleneck.insert_(low, "a", 4)
        assert low(ids).logits.dtype == torch.bfloat16


def test_a_model_without_known_sites():
    with pytest.raises(TrainingError, match="width 4 and Linear"):
        bottleneck.insert_(torch.nn.Linear(3, 3), "a", 4)
