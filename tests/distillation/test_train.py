"""One loop for every way of learning from a teacher; only the loss differs."""

import pytest
import sentences as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from microbudget.core.errors import TrainingError
from microbudget.data import text
from microbudget.distillation import students
from microbudget.distillation import teacher_cache as to
from microbudget.distillation import train as cd
from microbudget.distillation.mutual import mutual
from microbudget.finetuning import methods
from microbudget.training import text_classifier
from microbudget.training.losses import (
    IGNORE,
    attention_transfer_loss,
    logit_mse_loss,
    soft_target_loss,
)


def student(seed=0, classes=2):
    return students.bilstm(
        len(tiny.tokenizer()), classes, width=16, hidden=8, seed=seed
    )


@pytest.fixture(scope="module")
def data():
    return tiny.sentences(3)


@pytest.fixture(scope="module")
def teacher(data):
    return to.compute(tiny.classifier(layers=4), data, layers=[2, 4])


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_without_a_teacher_it_is_the_ordinary_training(data):
    ours, theirs = student(), student()
    a = cd.train(ours, data, lr=1e-2, epochs=2)
    b = text_classifier.train(theirs, data, lr=1e-2, epochs=2)
    assert a.losses == pytest.approx(b.losses, abs=1e-6)
    torch.testing.assert_close(weights(ours), weights(theirs))


def test_the_first_loss_is_the_one_that_was_asked_for(data, teacher):
    every = len(data)

    def first(recipe):
        return cd.train(
            student(), data, teacher, recipe, lr=1e-9, batch_size=every
        ).losses[0]

    logits = text_classifier.predict(student(), data)
    hard = float(F.cross_entropy(logits, data.labels))
    soft = float(soft_target_loss(logits, teacher.logits, 3.0))
    mse = float(logit_mse_loss(logits, teacher.logits))
    assert first(cd.LABELS) == pytest.approx(hard, abs=1e-5)
    assert first(cd.Recipe(0.0, 1.0, temperature=3.0)) == pytest.approx(soft, abs=1e-5)
    assert first(cd.Recipe(0.0, logits=1.0)) == pytest.approx(mse, abs=1e-5)
    mixed = first(cd.Recipe(0.25, 2.0, 0.5, temperature=3.0))
    assert mixed == pytest.approx(0.25 * hard + 2 * soft + 0.5 * mse, abs=1e-5)


def test_a_soft_student_comes_near_its_teacher_and_never_sees_a_label(data, teacher):
    blind = tiny.sentences(3)
    blind.labels = torch.full_like(data.labels, IGNORE)
    taught, unlabelled = student(), student()
    far = soft_target_loss(text_classifier.predict(taught, data), teacher.logits)
    cd.train(taught, data, teacher, cd.SOFT, lr=1e-2, epochs=6)
    cd.train(unlabelled, blind, teacher, cd.SOFT, lr=1e-2, epochs=6)
    near = soft_target_loss(text_classifier.predict(taught, data), teacher.logits)
    assert near < far / 2
    assert torch.equal(weights(taught), weights(unlabelled))


def test_unlabelled_sentences_count_as_nothing_in_the_hard_term():
    logits = torch.randn(4, 2)
    labels = torch.tensor([0, IGNORE, 1, IGNORE])
    own = F.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(cd.label_loss(logits, labels), own / 2)
    assert cd.label_loss(logits, torch.full((4,), IGNORE)) == 0


@given(teacher=st.integers(1, 24), share=st.floats(0, 1))
def test_the_last_layer_learns_from_the_last(teacher, share):
    own = max(1, round(share * teacher))
    pairs = cd.layer_map(own, teacher)
    assert pairs[-1] == (own, teacher)
    ours, theirs = zip(*pairs, strict=True)
    assert list(ours) == list(range(1, own + 1))
    assert list(theirs) == sorted(set(theirs))
    assert min(theirs) >= 1


def test_tinyberts_map():
    assert cd.layer_map(4, 12) == ((1, 3), (2, 6), (3, 9), (4, 12))
    for wrong in ((0, 6), (7, 6)):
        with pytest.raises(TrainingError, match="can't be mapped"):
            cd.layer_map(*wrong)


def test_states_come_nearer_through_a_projection_that_is_learnt(data, teacher):
    model = student()
    recipe = cd.Recipe(hard=0.0, hidden=1.0)
    learner = cd.Learner(model, ((1, 4),), {4: 48})
    assert learner.projections["1"].weight.shape == (48, 16)
    history = cd.train(model, data, teacher, recipe, lr=1e-2, epochs=10)
    assert history.losses[-1] < 0.7 * history.losses[0]
    assert not hasattr(model, "projections")


def test_equal_widths_are_compared_as_they_are(data):
    whole = tiny.classifier(layers=2)
    outputs = to.compute(whole, data, layers=[1, 2])
    same = students.truncated(whole, [0, 1])
    assert not len(cd.Learner(same, ((1, 1), (2, 2)), {1: 48, 2: 48}).projections)
    recipe = cd.Recipe(hard=0.0, hidden=1.0, attention=1.0)
    losses = cd.train(same, data, outputs, recipe, lr=1e-9).losses
    assert max(losses) < 1e-5  # the teacher itself: only float16's rounding is left


def test_a_map_of_ones_own_is_followed(data, teacher):
    recipe = cd.Recipe(hidden=1.0, layer_map=((1, 2),))
    to_layer_2 = cd.train(student(), data, teacher, recipe, lr=1e-9).losses
    default = cd.train(student(), data, teacher, cd.Recipe(hidden=1.0), lr=1e-9).losses
    assert to_layer_2 != default


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


def test_attention_transfer_by_hand():
    a = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [9.0, 9.0]]])
    b = torch.tensor([[[0.0], [2.0], [7.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert attention_transfer_loss(a, b, mask) == pytest.approx(2.0)
    with pytest.raises(TrainingError, match="same sentences"):
        attention_transfer_loss(a, b[:, :2], mask)


@given(seed=st.integers(0, 99), classes=st.integers(2, 9))
def test_hot_soft_targets_are_half_the_squared_distance(seed, classes):
    """Hinton et al. 2015, section 2.1, for logits of mean zero."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 20, classes, generator=generator).double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    hot = soft_target_loss(a, b, temperature=200.0)
    torch.testing.assert_close(hot, logit_mse_loss(a, b) / 2, rtol=0.05, atol=2e-3)


def test_mutual_students_agree_more_than_lonely_ones(data):
    def distance(pair):
        a, b = (text_classifier.predict(m, data) for m in pair)
        return float((a.softmax(1) - b.softmax(1)).abs().mean())

    blind = tiny.sentences(3)
    blind.labels = torch.full_like(data.labels, IGNORE)
    pair = student(0), student(1)
    before = distance(pair)
    mutual(pair, blind, lr=3e-3, epochs=4)  # without labels only each other is left
    assert distance(pair) < before / 2


def test_twins_have_nothing_to_teach_each_other(data):
    twins, alone = (student(0), student(0)), student(0)
    together = mutual(twins, data, lr=1e-2, max_grad_norm=None)
    single = cd.train(alone, data, lr=1e-2, max_grad_norm=None)
    assert together.losses == pytest.approx([2 * x for x in single.losses], abs=1e-5)
    for twin in twins:
        torch.testing.assert_close(weights(twin), weights(alone))


def test_mutual_needs_two_and_a_rate(data):
    with pytest.raises(TrainingError, match="two students"):
        mutual([student()], data, lr=1e-3)
    with pytest.raises(TrainingError, match="positive"):
        mutual([student(), student(1)], data, lr=0.0)


@pytest.mark.parametrize(
    ("recipe", "outputs", "says"),
    [
        (cd.SOFT, None, "give its outputs"),
        (cd.Recipe(hidden=1.0), "logits", "hidden states"),
        (cd.Recipe(hard=0.0), "whole", "nor all 0"),
        (cd.Recipe(soft=-1.0), "whole", "not be negative"),
        (cd.Recipe(hidden=1.0, layer_map=((1, 3),)), "whole", "were kept"),
        (cd.Recipe(hidden=1.0, layer_map=((2, 4),)), "whole", "were kept"),
        (cd.SOFT, "short", "ask it about these"),
        (cd.SOFT, "three classes", "has 3 classes"),
    ],
)
def test_recipes_that_do_not_fit(data, teacher, recipe, outputs, says):
    given_outputs = {
        None: None,
        "whole": teacher,
        "logits": to.Outputs(teacher.logits),
        "short": teacher.first(5),
        "three classes": to.Outputs(torch.zeros(len(data), 3)),
    }[outputs]
    with pytest.raises(TrainingError, match=says):
        cd.train(student(), data, given_outputs, recipe, lr=1e-3)


def test_labels_that_do_not_fit(data):
    wrong = tiny.sentences(1)
    wrong.labels = wrong.labels + 1
    with pytest.raises(TrainingError, match="Labels run from 1 to 2"):
        cd.train(student(), wrong, lr=1e-3)
    wrong.labels = torch.full_like(wrong.labels, IGNORE)
    with pytest.raises(TrainingError, match="No sentence has a label"):
        cd.train(student(), wrong, lr=1e-3)
    with pytest.raises(TrainingError, match="positive"):
        cd.train(student(), data, lr=-1.0)


def test_states_of_other_sentences_are_noticed(teacher):
    rows = tiny.labelled(3)
    turned = text.Labelled(rows.texts[::-1], rows.labels[::-1])
    other = text.Sentences(tiny.tokenizer(), turned)
    with pytest.raises(TrainingError, match="other sentences"):
        cd.train(student(), other, teacher, cd.Recipe(hidden=1.0), lr=1e-3)


def test_what_evaluates_is_given_the_student(data, teacher):
    ours = student()
    history = cd.train(
        ours, data, teacher, cd.Recipe(0.0, 1.0), lr=1e-2, epochs=2,
        evaluate=lambda model: {"accuracy": text_classifier.score(model, data)},
        monitor="accuracy",
    )  # fmt: skip
    assert max(history.curve("accuracy")) == text_classifier.score(ours, data)


def test_an_adapter_of_other_layers_is_refused(tmp_path):
    whole = tiny.classifier(layers=4)
    one, other = (students.truncated(whole, pair) for pair in ([0, 2], [1, 3]))
    methods.save(methods.bitfit(one), tmp_path / "part.safetensors")
    with pytest.raises(TrainingError, match="fits its own base"):
        methods.load(other, tmp_path / "part.safetensors")
