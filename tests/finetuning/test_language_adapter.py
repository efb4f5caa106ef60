"""Language adapters: the labels are never asked, the task's adapter never touched."""

import pytest
import torch
from sentences import NEGATIVE, POSITIVE, classifier, tokenizer

from microbudget.core.errors import DataError, TrainingError
from microbudget.data.text import without_vowels
from microbudget.finetuning import bottleneck, language_adapter, methods, saving

TEXTS = POSITIVE + NEGATIVE


TASK = methods.BottleneckConfig(4)


def train(model, texts=TEXTS, **options):
    config = language_adapter.LanguageAdapterConfig(width=16, **options)
    return language_adapter.train_language_adapter(
        model, tokenizer(), texts, without_vowels, config
    )


def test_it_brings_the_dialect_nearer_to_plain_english(tmp_path):
    model = methods.apply_(classifier(), TASK)
    before = {n: p.clone() for n, p in model.named_parameters()}
    history = train(model, steps=60, lr=1e-2)
    assert sum(history.losses[-5:]) < 0.7 * sum(history.losses[:5])
    for name, parameter in model.named_parameters():
        if ".adapters.language." not in name:
            assert torch.equal(parameter, before[name]), name
            assert not parameter.requires_grad
    assert set(model.applied) == {"task", "language"}
    path = saving.save(model, tmp_path / "language")
    other = classifier()
    saving.load_(other, path)
    methods.apply_(other, TASK)
    methods.activate_(other, "language", "task")
    methods.activate_(model, "language", "task")
    own = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if ".adapters.language." in name:
            assert torch.equal(parameter, own[name])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_a_failure_the_adapter_is_active_as_after_apply(error, monkeypatch):
    model = methods.apply_(classifier(), TASK)

    def fail(*_):  # it is called first while no adapter is active
        raise error

    monkeypatch.setattr(language_adapter, "upper_means", fail)
    with pytest.raises(error):
        train(model)
    sites = [m for m in model.modules() if isinstance(m, bottleneck.Adapted)]
    assert sites and all(site.active == ["language"] for site in sites)
    own = {n for n, p in model.named_parameters() if p.requires_grad}
    assert own == set(methods.applied(model)["language"].parameters)


def test_the_distance_is_one_for_the_mean_and_zero_for_the_same():
    target = torch.randn(50, 7)
    assert language_adapter.relative_distance(target, target) == 0
    mean = target.mean(0).expand_as(target)
    assert language_adapter.relative_distance(target, mean) == pytest.approx(1)


def test_means_are_over_real_tokens_of_the_upper_layers():
    model = classifier(layers=4).eval()
    tokens = tokenizer()(list(TEXTS))["input_ids"]
    data = language_adapter.Parallel([(ids, ids) for ids in tokens], pad=0)
    ids, mask, _, _ = data.collate([data[0], data[2]])
    together = language_adapter.upper_means(model, ids, mask)
    assert [t.shape for t in together] == [(2, 48)] * 3  # after layers 2, 3 and 4
    alone = language_adapter.upper_means(model, *data.collate([data[0]])[:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-5)


def test_bad_input():
    model = classifier()
    with pytest.raises(DataError, match="None of 0 sentences"):
        train(model, [])
    with pytest.raises(DataError, match="at most 3 tokens"):
        train(model, max_tokens=3)
    assert not methods.applied(model)
    methods.apply_(model, TASK, "language")
    with pytest.raises(TrainingError, match="already"):
        train(model)
    assert set(model.applied) == {"language"}
