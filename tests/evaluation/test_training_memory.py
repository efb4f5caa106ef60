"""Where training's memory goes: the formula against every tensor's bytes."""

import peft
import pytest
import torch
from sentences import classifier, sentences
from torch.nn import functional as F

from microbudget.evaluation.sizes import count_parameters
from microbudget.evaluation.training_memory import (
    encoder_activation_bytes,
    measure_training_memory,
    predict_training_memory,
)
from microbudget.finetuning.methods import FullConfig, apply_
from microbudget.models import bert
from microbudget.training.text_classifier import optimizer

LORA = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])


def measured(model, ids, mask, labels):
    def loss():
        return F.cross_entropy(model(ids, mask), labels)

    return measure_training_memory(model, loss, optimizer(model, 1e-3))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("repeats", [1, 4])
def test_the_formula_predicts_what_is_kept(method, repeats):
    model, data = classifier(), sentences(repeats)
    apply_(model, FullConfig() if method == "full" else LORA)
    batch = data.collate([data[i] for i in range(len(data))])
    found = measured(model, *batch)
    counted = count_parameters(model)
    activations = encoder_activation_bytes(
        model.encoder.config, *batch[0].shape, frozen=method == "lora"
    )
    expected = predict_training_memory(counted.total, counted.trainable, activations)
    assert found.weights == expected.weights
    assert found.gradients == expected.gradients
    assert found.optimizer == expected.optimizer
    # embeddings, LoRA's own middle and the norms' statistics are left out
    assert found.activations == pytest.approx(expected.activations, rel=0.12)


def test_four_bit_weights_take_what_nf4_says():
    model = bert.load().classifier(2, four_bit=True)
    apply_(model, LORA)
    data = sentences()
    found = measured(model, *data.collate([data[i] for i in range(4)]))
    counted = count_parameters(model)
    linears = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    expected = predict_training_memory(
        counted.total, counted.trainable, 0, in_nf4=linears
    )
    assert found.weights == pytest.approx(expected.weights, rel=1e-3)
    assert found.gradients == expected.gradients


def test_views_of_one_storage_count_once():
    linear = torch.nn.Linear(10, 10, bias=False)
    x = torch.randn(5, 10)

    def loss():
        return (linear(x) * linear(x)).sum()

    found = measure_training_memory(linear, loss, optimizer(linear, 1e-3))
    assert found.activations == x.nbytes + 2 * 5 * 10 * 4
