"""One loop for every way to learn from a teacher; only the loss differs."""

from dataclasses import replace

import pytest
import sentences as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from microbudget.core.errors import TrainingError
from microbudget.distillation import student_training, students, teachers
from microbudget.distillation.student_training import (
    DistilConfig,
    DistilDataset,
    train_mutually,
)
from microbudget.training import text_classifier
from microbudget.training.losses import (
    IGNORE,
    attention_transfer_loss,
    logit_mse_loss,
    soft_target_loss,
)

SOFT = {"alpha_hard": 0, "alpha_soft": 1}
HIDDEN = {"alpha_hidden": 1}
MUTUAL = DistilConfig(lr=3e-3, epochs=4, alpha_soft=1, temperature=1)


def student(seed=0, classes=2):
    return students.bilstm(
        len(tiny.tokenizer()), classes, width=16, hidden=8, seed=seed
    )


@pytest.fixture(scope="module")
def data():
    return tiny.sentences(3)


@pytest.fixture(scope="module")
def teacher(data):
    return teachers.compute_outputs(tiny.classifier(layers=4), data, layers=[2, 4])


def train(model, sentences, outputs=None, lr=1e-3, epochs=1, **config):
    """With one pass and a small step, if nothing else is said."""
    data = DistilDataset(sentences, outputs)
    return student_training.train(
        model, data, DistilConfig(lr=lr, epochs=epochs, **config)
    )


def unlabelled():
    blind = tiny.sentences(3)
    blind.labels = torch.full_like(blind.labels, IGNORE)
    return blind


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_without_a_teacher_it_is_the_ordinary_training(data):
    ours, theirs = student(), student()
    a = train(ours, data, lr=1e-2, epochs=2)
    b = text_classifier.train(
        theirs, data, text_classifier.FinetuneConfig(lr=1e-2, epochs=2)
    )
    assert a.losses == pytest.approx(b.losses, abs=1e-6)
    torch.testing.assert_close(weights(ours), weights(theirs))


def test_the_first_loss_is_the_one_that_was_asked_for(data, teacher):
    every = len(data)

    def first(**alphas):
        return train(student(), data, teacher, batch_size=every, **alphas).losses[0]

    logits = text_classifier.predict(student(), data)
    hard = float(F.cross_entropy(logits, data.labels))
    soft = float(soft_target_loss(logits, teacher.logits, 3.0))
    mse = float(logit_mse_loss(logits, teacher.logits))
    assert first() == pytest.approx(hard, abs=1e-5)
    assert first(**SOFT, temperature=3.0) == pytest.approx(soft, abs=1e-5)
    assert first(alpha_hard=0, alpha_logits=1) == pytest.approx(mse, abs=1e-5)
    mixed = first(alpha_hard=0.25, alpha_soft=2, alpha_logits=0.5, temperature=3.0)
    assert mixed == pytest.approx(0.25 * hard + 2 * soft + 0.5 * mse, abs=1e-5)


def test_a_soft_student_comes_near_its_teacher_and_never_sees_a_label(data, teacher):
    taught, blind = student(), student()
    far = soft_target_loss(text_classifier.predict(taught, data), teacher.logits)
    train(taught, data, teacher, lr=1e-2, epochs=6, **SOFT)
    train(blind, unlabelled(), teacher, lr=1e-2, epochs=6, **SOFT)
    near = soft_target_loss(text_classifier.predict(taught, data), teacher.logits)
    assert near < far / 2
    assert torch.equal(weights(taught), weights(blind))


def test_unlabelled_sentences_count_as_nothing_in_the_hard_term():
    logits = torch.randn(4, 2)
    labels = torch.tensor([0, IGNORE, 1, IGNORE])
    own = F.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(student_training.label_loss(logits, labels), own / 2)
    assert student_training.label_loss(logits, torch.full((4,), IGNORE)) == 0


@given(teacher=st.integers(1, 24), share=st.floats(0, 1))
def test_the_last_layer_learns_from_the_last(teacher, share):
    own = max(1, round(share * teacher))
    pairs = student_training.layer_map(own, teacher)
    assert pairs[-1] == (own, teacher)
    ours, theirs = zip(*pairs, strict=True)
    assert list(ours) == list(range(1, own + 1))
    assert list(theirs) == sorted(set(theirs))
    assert min(theirs) >= 1


def test_tinyberts_map():
    assert student_training.layer_map(4, 12) == ((1, 3), (2, 6), (3, 9), (4, 12))
    for wrong in ((0, 6), (7, 6)):
        with pytest.raises(TrainingError, match="can't be mapped"):
            student_training.layer_map(*wrong)


def test_states_come_nearer_through_a_projection_that_is_learnt(data, teacher):
    model = student()
    wrapped = student_training.StudentWithProjections(model, ((1, 4),), teacher)
    assert wrapped.projections["1"].weight.shape == (48, 16)
    only_states = {"alpha_hard": 0, "alpha_hidden": 1}
    history = train(model, data, teacher, lr=1e-2, epochs=10, **only_states)
    assert history.losses[-1] < 0.7 * history.losses[0]
    assert not hasattr(model, "projections")


def test_equal_widths_are_compared_as_they_are(data):
    whole = tiny.classifier(layers=2)
    outputs = teachers.compute_outputs(whole, data, layers=[1, 2])
    same = students.keep_layers(whole, [0, 1])
    pairs = ((1, 1), (2, 2))
    wrapped = student_training.StudentWithProjections(same, pairs, outputs)
    assert not list(wrapped.projections.parameters())
    alphas = {"alpha_hard": 0, "alpha_hidden": 1, "alpha_attention": 1}
    losses = train(same, data, outputs, lr=1e-9, **alphas).losses
    assert max(losses) < 1e-5  # the teacher itself: only float16's rounding is left


def states(seed, width, tokens=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, tokens, width, generator=generator)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10), width=st.integers(1, 9))
def test_attention_transfer(seed, scale, width):
    mask = (torch.arange(6) < torch.tensor([6, 2, 4])[:, None]).long()
    a, b = states(seed, width), states(seed + 1, 5)
    loss = attention_transfer_loss(a, b, mask)
    assert 0 <= loss <= 2  # two vectors of length 1 without negative numbers
    torch.testing.assert_close(attention_transfer_loss(scale * a, b, mask), loss)
    assert attention_transfer_loss(a, 3 * a, mask) < 1e-10
    noisy = a + 100 * (1 - mask).unsqueeze(-1)  # in the padding only
    torch.testing.assert_close(attention_transfer_loss(noisy, b, mask), loss)


def test_mutual_students_agree_more_than_lonely_ones(data):
    def distance():
        a, b = (text_classifier.predict(m, data).softmax(1) for m in pair)
        return float((a - b).abs().mean())

    pair = student(0), student(1)
    before = distance()
    # Without labels only each other is left to learn from.
    train_mutually(pair, unlabelled(), MUTUAL)
    assert distance() < before / 2


def test_twins_have_nothing_to_teach_each_other(data):
    twins, alone = (student(0), student(0)), student(0)
    together = train_mutually(twins, data, MUTUAL)
    single = train(alone, data)
    assert together.losses[0] == pytest.approx(2 * single.losses[0], abs=1e-5)
    torch.testing.assert_close(weights(twins[0]), weights(twins[1]))


@pytest.mark.parametrize("label", [2, -1])
def test_labels_outside_the_classes_are_refused(label):
    wrong = tiny.sentences(3)
    wrong.labels[1], wrong.labels[2] = IGNORE, label  # the former is allowed
    for action in (
        lambda: train(student(), wrong),
        lambda: train_mutually((student(0), student(1)), wrong, MUTUAL),
    ):
        with pytest.raises(TrainingError, match=f"label {label}, but .* 2 classes"):
            action()


@pytest.mark.parametrize(
    ("loss", "outputs", "says"),
    [
        (SOFT, None, "needs a teacher's logits"),
        (HIDDEN, "logits", "needs the teacher's hidden states"),
        (SOFT, "short", "other sentences"),
        (HIDDEN, "turned", "other sentences"),
        (SOFT, "three classes", "must have one shape"),
        ({"alpha_logits": 1}, "three classes", "must have one shape"),
        ({}, "unlabelled", "No sentence has a label"),
    ],
)
def test_losses_that_do_not_fit_the_teachers_outputs(
    data, teacher, loss, outputs, says
):
    given_outputs = {
        None: None,
        "logits": teachers.TeacherOutputs(teacher.logits),
        "unlabelled": teacher,
        "short": teacher.first(5),
        "turned": replace(teacher, lengths=teacher.lengths[::-1]),
        "three classes": teachers.TeacherOutputs(torch.zeros(len(data), 3)),
    }[outputs]
    sentences = unlabelled() if outputs == "unlabelled" else data
    with pytest.raises(TrainingError, match=says):
        train(student(), sentences, given_outputs, **loss)


def test_every_layer_that_is_learnt_from_must_have_been_kept(data, teacher):
    two = students.keep_layers(tiny.classifier(layers=4), [0, 3])
    last_only = replace(teacher, states={4: teacher.states[4]})
    with pytest.raises(TrainingError, match=r"\[2\], whose states weren't kept"):
        train(two, data, last_only, **HIDDEN)
