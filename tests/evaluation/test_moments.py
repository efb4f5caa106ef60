"""Moments of layers' inputs and gradients: sums that don't depend on the batches."""

import sentences
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from microbudget.evaluation import moments as flow
from microbudget.evaluation.moments import Moments


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).eval()


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_moments_do_not_depend_on_how_the_samples_come(first, seed):
    torch.manual_seed(seed)
    x = torch.randn(41, 5).double() + 1
    parts = Moments.zeros(5).add(x[:first]).add(x[first:])
    assert parts.count == 41
    torch.testing.assert_close(parts.mean, x.mean(0))
    torch.testing.assert_close(parts.matrix(), x.T @ x / 41)
    torch.testing.assert_close(
        parts.matrix(centred=True), torch.cov(x.T, correction=0), atol=1e-9, rtol=1e-7
    )


def test_moments_are_collected_batch_by_batch():
    model, x = net(), torch.randn(50, 6)
    found = flow.collect_moments(model, [(x[:20],), (x[20:],)])
    assert list(found) == ["0", "2"]
    inner = torch.tanh(model[0](x)).double()
    torch.testing.assert_close(
        found["2"].matrix(), inner.T @ inner / 50, atol=1e-6, rtol=1e-5
    )
    assert not any(m._forward_pre_hooks for m in model.modules())
    only = flow.collect_moments(model, [(x,)], ["2"])
    assert list(only) == ["2"]


def test_padding_does_not_count():
    model = sentences.classifier()
    data = sentences.sentences()
    ids, mask, _ = data.collate([data[i] for i in range(len(data))])
    long = torch.nn.functional.pad(ids, (0, 9), value=data.pad)
    longer = torch.nn.functional.pad(mask, (0, 9))
    tight = flow.collect_moments(model, [(ids, mask)], token_mask=lambda b: b[1])
    padded = flow.collect_moments(model, [(long, longer)], token_mask=lambda b: b[1])
    name = "encoder.encoder.layer.1.output.dense"
    assert tight[name].count == padded[name].count == int(mask.sum())
    torch.testing.assert_close(
        tight[name].matrix(), padded[name].matrix(), atol=1e-6, rtol=1e-4
    )
    assert tight["heads.task"].count == len(data)  # vectors of sentences, not of tokens
    careless = flow.collect_moments(model, [(long, longer)])
    assert careless[name].count == long.numel()


def test_gradients_are_autograds():
    model, x = net(), torch.randn(30, 6)

    def loss(model, batch):
        return model(batch[0]).square().sum()

    model.requires_grad_(False)
    found = flow.collect_gradients(model, [(x[:10],), (x[10:],)], loss)
    hidden = model[0](x).requires_grad_()
    model[2](torch.tanh(hidden)).square().sum().backward()
    expected = (hidden.grad.T @ hidden.grad).double() / 30
    torch.testing.assert_close(found["0"].matrix(), expected, atol=1e-6, rtol=1e-4)
    last = 2 * model(x)
    expected = (last.T @ last).double() / 30
    torch.testing.assert_close(found["2"].matrix(), expected, atol=1e-6, rtol=1e-4)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
