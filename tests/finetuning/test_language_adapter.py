"""Language adapters: the labels are never asked, the task's adapter never touched."""

import pytest
import torch
from sentences import NEGATIVE, POSITIVE, classifier, tokenizer

from microbudget.core.errors import DataError, TrainingError
from microbudget.data.text import without_vowels
from microbudget.finetuning import language_adapter, methods
from microbudget.training import adapters

TEXTS = POSITIVE + NEGATIVE


def test_it_brings_the_dialect_nearer_to_plain_english(tmp_path):
    model = classifier()
    methods.bottlenecks(model, width=4)
    before = {n: p.clone() for n, p in model.named_parameters()}
    history = language_adapter.train_adapter(
        model, tokenizer(), TEXTS, without_vowels, width=16, steps=60, lr=1e-2
    )
    assert sum(history.losses[-5:]) < 0.7 * sum(history.losses[:5])
    for name, parameter in model.named_parameters():
        if ".adapters.language." not in name:
            assert torch.equal(parameter, before[name]), name
    assert adapters.names(model) == {"task", "language"}
    assert adapters.active(model) == ["task"]
    path = methods.save(model, tmp_path / "language", name="language")
    other = classifier()
    methods.load(other, path)
    methods.bottlenecks(other, width=4)
    adapters.activate(other, ["language", "task"])
    adapters.activate(model, ["language", "task"])
    own = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if ".adapters.language." in name:
            assert torch.equal(parameter, own[name])


def test_the_distance_is_one_for_the_mean_and_zero_for_the_same():
    target = torch.randn(50, 7)
    assert language_adapter.relative_distance(target, target) == 0
    mean = target.mean(0).expand_as(target)
    assert language_adapter.relative_distance(target, mean) == pytest.approx(1)


def test_means_are_over_real_tokens_of_the_upper_layers():
    model = classifier(layers=4).eval()
    data = language_adapter.Parallel(tokenizer(), [(t, t) for t in TEXTS], 40)
    ids, mask, _, _ = data.collate([data[0], data[2]])
    together = language_adapter.upper_means(model, ids, mask)
    assert [t.shape for t in together] == [(2, 48)] * 3  # after layers 2, 3 and 4
    alone = language_adapter.upper_means(model, *data.collate([data[0]])[:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-5)


def test_bad_input():
    model = classifier()
    with pytest.raises(DataError, match="no sentences"):
        language_adapter.train_adapter(model, tokenizer(), [], without_vowels)
    with pytest.raises(DataError, match="at most 3 tokens"):
        language_adapter.train_adapter(
            model, tokenizer(), TEXTS, without_vowels, max_tokens=3
        )
    assert not adapters.names(model)
    adapters.add(model, "language", 4)
    with pytest.raises(TrainingError, match="already"):
        language_adapter.train_adapter(model, tokenizer(), TEXTS, without_vowels)
