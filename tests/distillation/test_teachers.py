"""A teacher's answers: computed once, read again, never another teacher's."""

import pytest
import sentences as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from microbudget.core.errors import MicrobudgetError
from microbudget.data import text
from microbudget.distillation import students, teachers
from microbudget.training import text_classifier
from microbudget.training.losses import IGNORE


@pytest.fixture
def teacher():
    return tiny.classifier(layers=2)


def test_logits_are_predicts_and_states_are_the_layers(teacher):
    data = tiny.sentences(1)
    found = teachers.compute_outputs(teacher, data, layers=(1, 2))
    torch.testing.assert_close(found.logits, text_classifier.predict(teacher, data))
    assert sorted(found.states) == [1, 2]
    starts = torch.tensor([0, *found.lengths]).cumsum(0)
    for i in range(len(data)):
        ids, mask, _ = data.collate([data[i]])
        _, states = students.logits_and_states(teacher, ids, mask)
        for layer in (1, 2):
            own = found.states[layer][starts[i] : starts[i + 1]].float()
            expected = states[layer][0, : data.lengths[i]].detach()
            torch.testing.assert_close(own, expected, atol=3e-3, rtol=1e-3)
    assert not found.logits.requires_grad
    assert found.bytes() == sum(
        t.numel() * t.element_size() for t in (found.logits, *found.states.values())
    )


def test_the_first_ones_keep_their_own_states(teacher):
    data = tiny.sentences(1)
    found = teachers.compute_outputs(teacher, data, layers=[2]).first(3)
    assert len(found) == 3
    assert found.lengths == tuple(data.lengths[:3])
    assert len(found.states[2]) == sum(data.lengths[:3])


class _Plain(text.Sentences):
    """Sentences whose tokens are given."""

    def __init__(self, ids, labels=None):
        self.ids, self.pad = ids, 0
        self.lengths = [len(row) for row in ids]
        self.labels = torch.tensor(labels or [0] * len(ids))


def test_it_is_computed_once_and_read_afterwards(teacher, home, monkeypatch):
    data = _Plain([[5, 6, 7], [8, 9]])
    first = teachers.teacher_outputs(teacher, data, [2])
    monkeypatch.setattr(teachers, "compute_outputs", lambda *a: pytest.fail("again"))
    again = teachers.teacher_outputs(teacher, data, [2])
    assert (first.origin, again.origin) == ("computed", "read")
    assert first.path == again.path == teachers.cache_path(teacher, data, [2])
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.states[2], again.states[2])
    assert first.lengths == again.lengths == (3, 2)
    assert list((home / "runs" / "teacher").iterdir()) == [first.path]


@pytest.mark.parametrize("harm", ["cut", "nonsense"])
def test_a_damaged_file_is_computed_again_and_says_so(teacher, home, harm):
    data = _Plain([[5, 6, 7], [8, 9]])
    first = teachers.teacher_outputs(teacher, data, [2])
    raw = first.path.read_bytes()
    first.path.write_bytes(raw[:-9] if harm == "cut" else b"not safetensors")
    again = teachers.teacher_outputs(teacher, data, [2])
    assert again.origin.startswith("computed again: the file was damaged")
    assert torch.equal(again.logits, first.logits)
    assert teachers.teacher_outputs(teacher, data, [2]).origin == "read"


def test_the_files_name_tells_what_decides_the_answers(teacher):
    data = _Plain([[5, 6, 7], [8, 9]])
    key = teachers.cache_path(teacher, data)
    assert teachers.cache_path(teacher, _Plain([[5, 6, 7], [8, 9]], [1, 1])) == key
    assert teachers.cache_path(teacher, _Plain([[5, 6], [7, 8, 9]])) != key
    assert teachers.cache_path(teacher, data, [2]) != key
    with torch.no_grad():
        teacher.encoder.encoder.layer[0].output.dense.bias[0] += 1e-3
    changed = teachers.cache_path(teacher, data)
    assert changed != key
    teacher.add_head("other", 2)
    assert teachers.cache_path(teacher, data) != changed


def test_answers_must_be_finite(teacher, home):
    data = _Plain([[5, 6]])
    with torch.no_grad():
        teacher.heads["task"].bias.fill_(float("nan"))
    with pytest.raises(MicrobudgetError, match="NaN"):
        teachers.teacher_outputs(teacher, data)
    assert not teachers.cache_path(teacher, data).exists()


TEACHERS = st.integers(1, 4)


def answers(n, seed, rows=30, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(rows, classes, generator=generator) for _ in range(n)]


@settings(max_examples=25)
@given(n=TEACHERS, seed=st.integers(0, 99), t=st.floats(0.5, 6))
def test_mixed_teachers_are_the_mean_of_their_softened_probabilities(n, seed, t):
    logits = answers(n, seed)
    weights = [i + 1.0 for i in range(n)]
    share = torch.tensor(weights) / sum(weights)
    p = torch.stack([F.softmax(z / t, -1) for z in logits])
    expected = (share[:, None, None] * p).sum(0)
    found = teachers.mix_teachers(logits, weights, t)
    torch.testing.assert_close(F.softmax(found / t, -1), expected)
    if n > 1:
        nobody = teachers.mix_teachers(logits, [1.0, *[0.0] * (n - 1)], t)
        torch.testing.assert_close(
            F.softmax(nobody / t, -1), F.softmax(logits[0] / t, -1)
        )


@settings(max_examples=25)
@given(n=TEACHERS, seed=st.integers(0, 99))
def test_the_best_mixture_is_no_worse_than_any_other(n, seed):
    logits = answers(n, seed)
    labels = (logits[0] + torch.randn(30, 3)).argmax(1)

    def loss(weights):
        z = teachers.mix_teachers(logits, weights, temperature=1.0)
        return float(F.cross_entropy(z, labels))

    best = teachers.mixture_weights(logits, labels)
    assert abs(sum(best) - 1) < 1e-9
    assert min(best) >= 0
    others = [[1.0] * n]
    others += [[float(i == j) for j in range(n)] for i in range(n)]
    assert loss(best) <= min(map(loss, others)) + 1e-4


def test_a_black_box_gives_labels_only_and_labels_may_be_missing():
    labelled = text.Labelled(("a", "b", "c"), (0, 0, 0))
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 0.1]])
    assert teachers.with_teacher_labels(labelled, logits).labels == (1, 0, 1)
    assert teachers.unlabelled(labelled.texts).labels == (IGNORE,) * 3
