"""A language model with fewer layers learns what the whole one writes."""

import copy

import pytest
import tiny_llm
import torch
from torch.nn import functional as F

from microbudget.core.errors import TrainingError
from microbudget.distillation import sequence as sd
from microbudget.training.losses import IGNORE

PROMPT, ANSWER = "The small model", " slept beside it"


@pytest.fixture(scope="module")
def teacher():
    return tiny_llm.llm(hidden=64, layers=4)


def test_it_writes_the_likeliest_token_every_time(teacher):
    prompts = tiny_llm.ids(6, batch=5)
    texts = sd.write(teacher, prompts, 7, batch_size=2)
    ids = prompts
    for _ in range(7):
        ids = torch.cat([ids, teacher.model(ids).logits[:, -1:].argmax(-1)], 1)
    end = teacher.tokenizer.eos_token_id
    for row, (ours, expected) in enumerate(zip(texts.ids, ids, strict=True)):
        stop = int(texts.ends[row])
        assert torch.equal(ours[:stop], expected[:stop])
        assert stop == 13 or expected[stop - 1] == end
    assert texts.prompt == 6
    assert sd.judge(teacher, texts).agreement == 1.0


def test_what_is_after_the_end_does_not_count():
    parrot = tiny_llm.parrot(PROMPT, ANSWER)
    prompt = tiny_llm.ids_of(parrot.tokenizer, PROMPT)
    answer = tiny_llm.ids_of(parrot.tokenizer, ANSWER)
    texts = sd.write(parrot, torch.tensor([prompt, prompt]), len(answer) + 6)
    end = parrot.tokenizer.eos_token_id
    wanted = [*[IGNORE] * len(prompt), *answer, end]
    labels = texts.labels()[0].tolist()
    assert labels[: len(wanted)] == wanted
    assert set(labels[len(wanted) :]) <= {IGNORE}
    assert sd.judge(parrot, texts).losses.shape == (2 * (len(answer) + 1),)


def test_peoples_texts_count_to_their_end():
    windows = tiny_llm.ids(9, batch=2)
    texts = sd.found(windows, 4)
    labels = texts.labels()
    assert (labels[:, :4] == IGNORE).all()
    assert torch.equal(labels[:, 4:], windows[:, 4:])
    for prompt in (0, 9):
        with pytest.raises(TrainingError, match="prompt="):
            sd.found(windows, prompt)


def test_a_shortened_model_computes_with_the_layers_it_kept(teacher):
    student = sd.shortened(teacher, (0, 3))
    by_hand = copy.deepcopy(teacher.model)
    by_hand.model.layers = torch.nn.ModuleList(by_hand.model.layers[i] for i in (0, 3))
    ids = tiny_llm.ids()
    logits = student.model(ids, use_cache=False).logits
    torch.testing.assert_close(logits, by_hand(ids, use_cache=False).logits)
    assert len(teacher.model.model.layers) == 4
    assert teacher.model.config.num_hidden_layers == 4
    layers = student.model.model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1]
    texts = sd.write(student, ids[:, :5], 6)  # with its cache of keys and values
    assert sd.judge(student, texts).agreement == 1.0  # without it


def test_embeddings_are_shared_and_frozen_layers_are_free_as_said(teacher):
    student = sd.shortened(teacher, (0, 1, 3), train=[3])
    mine, theirs = student.model, teacher.model
    assert mine.get_input_embeddings().weight is theirs.get_input_embeddings().weight
    assert mine.get_output_embeddings().weight is theirs.get_output_embeddings().weight
    free = {n for n, p in mine.named_parameters() if p.requires_grad}
    assert free
    assert all(name.startswith("model.layers.2.") for name in free)
    assert not any(p.requires_grad for p in theirs.parameters())


@pytest.mark.parametrize(
    ("layers", "train", "says"),
    [((), (), "name some of 0 to 3"), ((1, 0), (), "in order"),
     ((0, 4), (), "0 to 3"), ((0, 1), (3,), r"\[3\] can't learn")],
)  # fmt: skip
def test_layers_that_are_not_there(teacher, layers, train, says):
    with pytest.raises(TrainingError, match=says):
        sd.shortened(teacher, layers, train)


def test_it_learns_to_write_and_the_teacher_stays_as_it_was(teacher):
    before = {n: p.clone() for n, p in teacher.model.named_parameters()}
    texts = sd.write(teacher, tiny_llm.ids(6, batch=16), 8)
    student = sd.shortened(teacher, (0, 3))
    start = sd.judge(student, texts)
    history = sd.train(student, texts, lr=3e-3, epochs=6)
    after = sd.judge(student, texts)
    assert len(history.losses) == 12
    assert after.losses.mean() < start.losses.mean() / 2
    assert after.agreement > start.agreement
    for name, parameter in teacher.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_loss_is_that_of_all_logits(teacher):
    texts = sd.found(tiny_llm.ids(10, batch=3), 4)
    labels = texts.labels()
    logits = teacher.model(texts.ids).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(
        sd.text_loss(teacher.model, (texts.ids, labels)), expected
    )
    reading = sd.judge(teacher, texts, batch_size=2)
    torch.testing.assert_close(reading.losses.mean(), expected)


def test_nothing_to_go_on_from(teacher):
    for prompts, n in ((torch.zeros(2, 0, dtype=torch.long), 3), (tiny_llm.ids(), 0)):
        with pytest.raises(TrainingError, match="Prompts"):
            sd.write(teacher, prompts, n)
