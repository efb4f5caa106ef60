"""Distilling Whisper: targets are the teacher's own, and training learns them."""

import pytest
import torch
from torch.nn import functional as F
from whispers import tiny

from microbudget.core.errors import DataError, TrainingError
from microbudget.data import speech
from microbudget.evaluation.wer import word_errors
from microbudget.models import whisper
from microbudget.models import whisper_forward as forward
from microbudget.speech_distillation import decoding, recognition
from microbudget.speech_distillation.student_training import (
    ALPHAS,
    DistilConfig,
    DistilDataset,
    StudentDecoder,
    TeacherTargets,
    prepare_targets,
    train,
)
from microbudget.training.losses import soft_target_loss_top_k, top_k


@pytest.fixture(scope="module")
def teacher():
    return whisper.load("whisper-tiny.en")


@pytest.fixture(scope="module")
def targets(teacher):
    return prepare_targets(
        teacher, speech.evenly_spaced(speech.load().train, 8), precision="no"
    )


def test_targets_are_what_the_teacher_transcribes(teacher, targets):
    assert len(targets) + len(targets.dropped) == 8
    assert len(targets) >= 5
    for clip in targets:
        assert clip.labels[-1] == 50256
        assert clip.kept.classes.shape == (len(clip.labels), 32)
        assert not clip.states.is_inference()
        tokens = decoding.greedy_decode(teacher, clip.states[None])[0]
        assert clip.labels[:-1].tolist() == tokens


def test_top_k_is_the_teachers_own(teacher, targets):
    """Of the raw logits at every position, the end included."""
    clip = targets[0]
    tokens = torch.cat([torch.tensor([50257, 50362]), clip.labels[:-1]])
    with torch.inference_mode():
        decoder = teacher.model.model.decoder
        hidden = forward.decode(decoder, tokens[None], clip.states[None])[0, 1:]
        expected = top_k(forward.project(decoder, hidden), 32)
    torch.testing.assert_close(
        clip.kept.probabilities, expected.probabilities, rtol=1e-3, atol=1e-6
    )
    agree = (clip.kept.classes[:, 0] == clip.labels).float().mean()
    assert agree > 0.9  # greedy: all but what the rules forbid


def test_a_batch_pads_and_hides_its_padding(teacher, targets):
    some = [targets[0], targets[1], targets[len(targets) - 1]]
    batch = targets.collate(some)
    assert (
        int(batch.predicts.sum())
        == len(batch.labels)
        == sum(len(x.labels) for x in some)
    )
    decoder = StudentDecoder(teacher.model.model.decoder)
    with torch.inference_mode():
        together = decoder(batch)
        alone = torch.cat([decoder(targets.collate([x])) for x in some])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_clips_with_another_text_are_dropped(teacher):
    clips = speech.evenly_spaced(speech.load().train, 4)
    wrong = [speech.Clip(clips[0].path, "quite another text", clips[0].seconds)]
    kept = prepare_targets(teacher, [*clips[1:], *wrong], precision="no")
    assert len(kept.dropped) >= 1
    with pytest.raises(DataError, match="None of 1 clips"):
        prepare_targets(teacher, wrong)
    with pytest.raises(DataError, match="None of 0 clips"):
        prepare_targets(teacher, [])


def random_targets(teacher, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        length = 4 + i
        states = torch.randn(20 + 3 * i, 64, generator=generator)
        labels = torch.randint(0, 50_000, (length,), generator=generator)
        logits = 3 * torch.randn(length, 51_864, generator=generator)
        made.append(TeacherTargets(states, labels, top_k(logits, 32)))
    return DistilDataset(made, torch.tensor([50257, 50362]))


CONFIG = DistilConfig(steps=10, batch_size=3, lr=3e-3, precision="no")
GOLDEN = [11.3346, 11.5448, 11.0386, 10.1952, 9.9671,
          10.2805, 9.516, 9.9778, 9.2561, 9.7991]  # fmt: skip


def test_the_loss_falls_as_it_did(teacher):
    """A golden curve: ten steps of a tiny student, to three digits."""
    student = whisper.student(tiny(seed=4))
    losses = train(student, random_targets(student), CONFIG).losses
    assert losses == pytest.approx(GOLDEN, rel=2e-3)


def test_only_the_layers_are_trained():
    teacher = tiny(seed=5)
    student = whisper.student(teacher)
    before = {n: p.clone() for n, p in student.model.named_parameters()}
    train(student, random_targets(teacher), CONFIG)
    for name, parameter in student.model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        trainable = ".decoder.layers." in name or ".decoder.layer_norm." in name
        assert moved == trainable, name


@pytest.mark.parametrize(("soft", "hard"), ALPHAS.values())
def test_both_weightings_train_in_bfloat16(soft, hard):
    student = whisper.student(tiny(seed=6))
    config = DistilConfig(
        steps=6, batch_size=3, lr=3e-3, alpha_soft=soft, alpha_hard=hard,
        precision="bf16",
    )  # fmt: skip
    history = train(student, random_targets(student), config)
    assert history.losses[-1] < history.losses[0]


def test_too_few_steps_are_a_clear_error():
    student = whisper.student(tiny(seed=6))
    with pytest.raises(TrainingError, match="less than one epoch"):
        train(student, random_targets(student, 40), DistilConfig(steps=3, batch_size=2))


def test_a_student_that_is_the_teacher_has_nothing_to_learn(teacher, targets):
    """Its KL to the kept words is zero, and its hard loss is the teacher's own."""
    batch = targets.collate([targets[0]])
    decoder = teacher.model.model.decoder
    with torch.inference_mode():
        logits = forward.project(decoder, StudentDecoder(decoder)(batch))
        assert soft_target_loss_top_k(logits, batch.kept) < 1e-3
        assert F.cross_entropy(logits, batch.labels) < 1.0


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch):
    """The same code, the same golden curve, on CUDA; and bf16 transcripts close."""
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    student = whisper.student(tiny(seed=4))
    losses = train(student, random_targets(student), CONFIG).losses
    assert losses == pytest.approx(GOLDEN, rel=1e-2)
    teacher = whisper.load("whisper-tiny.en")
    assert teacher.model.device.type == "cuda"
    clips = speech.evenly_spaced(speech.load().test, 4)
    sound = [clip.samples() for clip in clips]
    texts = recognition.transcribe(teacher, sound)
    assert word_errors([clip.text for clip in clips], texts).wer < 0.15
