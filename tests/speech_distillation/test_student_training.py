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
    DistilConfig,
    DistilDataset,
    StudentDecoder,
    TeacherTargets,
    prepare_targets,
    train,
)
from microbudget.training.losses import soft_target_loss


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
        assert clip.hidden.shape == (len(clip.labels), 384)
        assert not clip.states.is_inference()
        tokens = decoding.greedy_decode(teacher, clip.states[None])[0]
        assert clip.labels[:-1].tolist() == tokens


def test_soft_targets_are_the_teachers_own(teacher, targets):
    """Its logits at every position, the end included, from the cached states."""
    clip = targets[0]
    tokens = torch.cat([torch.tensor([50257, 50362]), clip.labels[:-1]])
    with torch.inference_mode():
        decoder = teacher.model.model.decoder
        hidden = forward.decode(decoder, tokens[None], clip.states[None])[0, 1:]
        expected = forward.project(decoder, hidden).softmax(-1)
        found = forward.project(decoder, clip.hidden.float()).softmax(-1)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-4)
    agree = (found.argmax(-1) == clip.labels).float().mean()
    assert agree > 0.9  # greedy: all but what the rules forbid


def test_labels_from_the_texts_are_the_texts(teacher):
    clips = speech.evenly_spaced(speech.load().train, 4)
    own = prepare_targets(teacher, clips, from_text=True, precision="no")
    texts = {clip.text.strip() for clip in clips}
    for clip in own:
        assert decoding.text_of(teacher, clip.labels[:-1].tolist()).strip() in texts


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
        hidden = torch.randn(length, 64, generator=generator).half()
        made.append(TeacherTargets(states, labels, hidden))
    return DistilDataset(made, torch.tensor([50257, 50362]))


CONFIG = DistilConfig(steps=10, batch_size=3, lr=3e-3, precision="no")
GOLDEN = [11.484, 11.4563, 10.9797, 10.5012, 10.3006,
          10.3042, 9.8305, 9.9966, 9.4878, 9.801]  # fmt: skip


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


@pytest.mark.parametrize(("soft", "hard"), [(0.8, 1.0), (0.0, 1.0)])
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
    """Its KL to itself is zero, and its hard loss is the teacher's own."""
    batch = targets.collate([targets[0]])
    decoder = teacher.model.model.decoder
    with torch.inference_mode():
        logits = forward.project(decoder, StudentDecoder(decoder)(batch))
        own = forward.project(decoder, batch.hidden.float())
        assert soft_target_loss(logits, own) < 1e-3
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
