"""Distilling Whisper: lessons as the teacher gives them, steps that teach."""

import pytest
import torch
from torch.nn import functional as F
from whispers import tiny

from microbudget.core.errors import DataError, TrainingError
from microbudget.data import speech
from microbudget.models import whisper
from microbudget.models import whisper_forward as forward
from microbudget.speech_distillation import decoding, transcribe
from microbudget.speech_distillation import distil as whisper_distillation
from microbudget.speech_distillation.distil import (
    Learner,
    Lesson,
    Lessons,
    distil,
    prepare,
)
from microbudget.training.losses import soft_target_loss, top_k


@pytest.fixture(scope="module")
def teacher():
    return whisper.load("whisper-tiny.en")


@pytest.fixture(scope="module")
def lessons(teacher):
    return prepare(
        teacher, speech.evenly_spaced(speech.load().train, 8), precision="no"
    )


def test_lessons_are_what_the_teacher_says(teacher, lessons):
    assert len(lessons) + len(lessons.dropped) == 8
    assert len(lessons) >= 5
    for lesson in lessons:
        assert lesson.wer <= whisper_distillation.MAX_WER
        assert lesson.labels[-1] == 50256
        assert lesson.kept.classes.shape == (len(lesson.labels), 32)
        assert not lesson.states.is_inference()
        text = decoding.text_of(teacher, lesson.labels[:-1].tolist())
        assert text == lesson.text


def test_top_k_is_the_teachers_own(teacher, lessons):
    """Of the raw logits at every place, the end included."""
    lesson = lessons[0]
    tokens = torch.cat([torch.tensor([50257, 50362]), lesson.labels[:-1]])
    with torch.inference_mode():
        decoder = teacher.model.model.decoder
        hidden = forward.decode(decoder, tokens[None], lesson.states[None])[0, 1:]
        expected = top_k(forward.project(decoder, hidden), 32)
    torch.testing.assert_close(
        lesson.kept.probabilities, expected.probabilities, rtol=1e-3, atol=1e-6
    )
    agree = (lesson.kept.classes[:, 0] == lesson.labels).float().mean()
    assert agree > 0.9  # greedy: all but what the rules forbid


def test_a_batch_pads_and_hides_its_padding(teacher, lessons):
    some = [lessons[0], lessons[1], lessons[len(lessons) - 1]]
    batch = lessons.collate(some)
    assert (
        int(batch.keep.sum()) == len(batch.labels) == sum(len(x.labels) for x in some)
    )
    learner = Learner(teacher.model.model.decoder)
    with torch.inference_mode():
        together = learner(batch)
        alone = torch.cat([learner(lessons.collate([x])) for x in some])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_misheard_clips_are_dropped(teacher):
    clips = speech.evenly_spaced(speech.load().train, 4)
    wrong = [speech.Clip(clips[0].path, "quite another text", clips[0].seconds)]
    kept = prepare(teacher, [*clips[1:], *wrong], precision="no")
    assert len(kept.dropped) >= 1
    with pytest.raises(DataError, match="misheard all 1"):
        prepare(teacher, wrong)
    with pytest.raises(DataError, match="no clips"):
        prepare(teacher, [])


def random_lessons(teacher, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        length = 4 + i
        states = torch.randn(20 + 3 * i, 64, generator=generator)
        labels = torch.randint(0, 50_000, (length,), generator=generator)
        logits = 3 * torch.randn(length, 51_864, generator=generator)
        made.append(Lesson(states, labels, top_k(logits, 32), "", 0.0))
    return Lessons(made, torch.tensor([50257, 50362]))


GOLDEN = [11.3346, 11.5448, 11.0386, 10.1952, 9.9671,
          10.2805, 9.516, 9.9778, 9.2561, 9.7991]  # fmt: skip


def test_the_loss_falls_as_it_did(teacher):
    """A golden curve: ten steps of a tiny student, to three digits."""
    student = whisper.student(tiny(seed=4))
    history = distil(
        student, random_lessons(student), steps=10, batch_size=3, lr=3e-3,
        precision="no",
    )  # fmt: skip
    assert len(history.losses) == 10
    expected = torch.tensor(GOLDEN)
    torch.testing.assert_close(
        torch.tensor(history.losses), expected, rtol=2e-3, atol=2e-3
    )
    assert history.losses[-1] < history.losses[0]


def test_only_the_layers_learn():
    teacher = tiny(seed=5)
    student = whisper.student(teacher)
    before = {n: p.clone() for n, p in student.model.named_parameters()}
    distil(student, random_lessons(teacher), steps=4, batch_size=3, precision="no")
    for name, parameter in student.model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        learns = ".decoder.layers." in name or ".decoder.layer_norm." in name
        assert moved == learns, name


@pytest.mark.parametrize("weighting", ["paper", "code"])
def test_both_weightings_train(weighting):
    student = whisper.student(tiny(seed=6))
    history = distil(
        student, random_lessons(student), steps=6, batch_size=3, lr=3e-3,
        weighting=weighting, precision="bf16",
    )  # fmt: skip
    assert history.losses[-1] < history.losses[0]


def test_too_few_steps_are_a_clear_error():
    student = whisper.student(tiny(seed=6))
    with pytest.raises(TrainingError, match="less than one pass"):
        distil(student, random_lessons(student, 40), steps=3, batch_size=2)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(teacher, lessons):
    """Its KL to the kept words is zero, and its hard loss is the teacher's own."""
    batch = lessons.collate([lessons[0]])
    decoder = teacher.model.model.decoder
    with torch.inference_mode():
        logits = forward.project(decoder, Learner(decoder)(batch))
        assert soft_target_loss(logits, logits) < 1e-6
        from microbudget.training.losses import soft_target_loss_top_k

        assert soft_target_loss_top_k(logits, batch.kept) < 1e-3
        assert F.cross_entropy(logits, batch.labels) < 1.0


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch):
    """The same code, the same golden curve, on CUDA; and bf16 transcripts close."""
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    student = whisper.student(tiny(seed=4))
    history = distil(
        student, random_lessons(student), steps=10, batch_size=3, lr=3e-3,
        precision="no",
    )  # fmt: skip
    torch.testing.assert_close(
        torch.tensor(history.losses), torch.tensor(GOLDEN), rtol=1e-2, atol=1e-2
    )
    teacher = whisper.load("whisper-tiny.en")
    assert teacher.model.device.type == "cuda"
    clips = speech.evenly_spaced(speech.load().test, 4)
    sound = [clip.samples() for clip in clips]
    texts = transcribe.transcribe(teacher, sound)
    from microbudget.evaluation.wer import word_errors

    assert word_errors([clip.text for clip in clips], texts).wer < 0.15
