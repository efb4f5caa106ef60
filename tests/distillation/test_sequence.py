"""A language model with fewer layers is trained on what the whole one writes."""

import copy

import pytest
import tiny_llm
import torch
from torch.nn import functional as F

from microbudget.core.errors import TrainingError
from microbudget.distillation import sequence
from microbudget.training.losses import IGNORE
from microbudget.training.text_classifier import FinetuneConfig

PROMPT, ANSWER = "The small model", " slept beside it"


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Tokens and losses are compared exactly; one test below is about bfloat16."""
    monkeypatch.setenv("MICROBUDGET_BF16", "0")


@pytest.fixture(scope="module")
def teacher():
    return tiny_llm.llm(hidden=64, layers=4)


def test_it_generates_the_likeliest_token_every_time(teacher):
    prompts = tiny_llm.ids(6, batch=5)
    texts = sequence.generate(teacher, prompts, 7, batch_size=2)
    ids = prompts
    for _ in range(7):
        ids = torch.cat([ids, teacher.model(ids).logits[:, -1:].argmax(-1)], 1)
    end = teacher.tokenizer.eos_token_id
    for row, (ours, expected) in enumerate(zip(texts.ids, ids, strict=True)):
        stop = int(texts.ends[row])
        assert torch.equal(ours[:stop], expected[:stop])
        assert stop == 13 or expected[stop - 1] == end
    assert texts.prompt_length == 6
    assert sequence.evaluate(teacher, texts).agreement == 1.0


def test_what_is_after_the_end_does_not_count():
    parrot = tiny_llm.parrot(PROMPT, ANSWER)
    prompt = tiny_llm.ids_of(parrot.tokenizer, PROMPT)
    answer = tiny_llm.ids_of(parrot.tokenizer, ANSWER)
    texts = sequence.generate(parrot, torch.tensor([prompt, prompt]), len(answer) + 6)
    end = parrot.tokenizer.eos_token_id
    wanted = [*[IGNORE] * len(prompt), *answer, end]
    labels = texts.labels()[0].tolist()
    assert labels[: len(wanted)] == wanted
    assert set(labels[len(wanted) :]) <= {IGNORE}
    assert sequence.evaluate(parrot, texts).losses.shape == (2 * (len(answer) + 1),)


def test_the_student_computes_with_the_layers_it_kept(teacher):
    student = sequence.keep_layers(teacher, (0, 3), trainable=(0, 3))
    by_hand = copy.deepcopy(teacher.model)
    by_hand.model.layers = torch.nn.ModuleList(by_hand.model.layers[i] for i in (0, 3))
    ids = tiny_llm.ids()
    logits = student.model(ids, use_cache=False).logits
    torch.testing.assert_close(logits, by_hand(ids, use_cache=False).logits)
    assert len(teacher.model.model.layers) == 4
    assert teacher.model.config.num_hidden_layers == 4
    layers = student.model.model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1]
    texts = sequence.generate(
        student, ids[:, :5], 6
    )  # with its cache of keys and values
    assert sequence.evaluate(student, texts).agreement == 1.0  # without it


def test_embeddings_are_shared_and_layers_are_trainable_as_asked(teacher):
    student = sequence.keep_layers(teacher, (0, 1, 3), trainable=[3])
    mine, theirs = student.model, teacher.model
    assert mine.get_input_embeddings().weight is theirs.get_input_embeddings().weight
    assert mine.get_output_embeddings().weight is theirs.get_output_embeddings().weight
    trainable = {n for n, p in mine.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.startswith("model.layers.2.") for name in trainable)
    assert not any(p.requires_grad for p in theirs.parameters())


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 4)])
def test_layers_that_are_not_there(teacher, layers):
    with pytest.raises(TrainingError, match="name some of 0 to 3"):
        sequence.keep_layers(teacher, layers, trainable=layers)


def test_the_student_learns_the_texts_and_the_teacher_stays_as_it_was(teacher):
    before = {n: p.clone() for n, p in teacher.model.named_parameters()}
    texts = sequence.generate(teacher, tiny_llm.ids(6, batch=16), 8)
    student = sequence.keep_layers(teacher, (0, 3), trainable=(0, 3))
    start = sequence.evaluate(student, texts)
    config = FinetuneConfig(lr=3e-3, epochs=6, batch_size=8)
    history = sequence.train(student, texts, config)
    after = sequence.evaluate(student, texts)
    assert len(history.losses) == 12
    assert after.losses.mean() < start.losses.mean() / 2
    assert after.agreement > start.agreement
    for name, parameter in teacher.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_loss_is_that_of_all_logits(teacher):
    texts = sequence.from_windows(tiny_llm.ids(10, batch=3), 4)
    labels = texts.labels()
    assert (labels[:, :4] == IGNORE).all()
    assert torch.equal(labels[:, 4:], texts.ids[:, 4:])  # windows count to their end
    logits = teacher.model(texts.ids).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    result = sequence.evaluate(teacher, texts, batch_size=2)
    torch.testing.assert_close(result.losses.mean(), expected)
    student = sequence.keep_layers(teacher, range(4), trainable=[3])
    config = FinetuneConfig(lr=1e-9, epochs=1, batch_size=3)
    (first,) = sequence.train(student, texts, config).losses
    assert first == pytest.approx(float(expected), abs=1e-5)


def test_bfloat16_stays_close(teacher, monkeypatch):
    """Eight bits of mantissa: losses within a few percent, and a text to the end."""
    texts = sequence.from_windows(tiny_llm.ids(10, batch=3), 4)
    exact = sequence.evaluate(teacher, texts).losses.mean()
    monkeypatch.setenv("MICROBUDGET_BF16", "1")
    rounded = sequence.evaluate(teacher, texts).losses.mean()
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.03)
    generated = sequence.generate(teacher, tiny_llm.ids(6, batch=3), 5)
    assert generated.ids.shape == (3, 11)
