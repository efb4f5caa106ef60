"""Word errors: counts add up over a corpus; Whisper's rules of spelling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbudget.core.errors import EvaluationError
from microbudget.evaluation import wer

WORDS = st.lists(st.sampled_from(["cat", "dog", "sun", "sea", "red"]), max_size=7)


def edits(a: list[str], b: list[str]) -> int:
    """Levenshtein distance in words, written down the slow way."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(above + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


@given(pairs=st.lists(st.tuples(WORDS.filter(len), WORDS), min_size=1, max_size=4))
def test_errors_are_edit_distances_added_up(pairs):
    said = [" ".join(a) for a, _ in pairs]
    written = [" ".join(b) for _, b in pairs]
    found = wer.word_errors(said, written)
    distances = [edits(a, b) for a, b in pairs]
    assert [errors for errors, _ in found.per_clip] == distances
    assert found.words == sum(len(a) for a, _ in pairs)
    assert found.wer == pytest.approx(sum(distances) / found.words)
    total = found.substitutions + found.deletions + found.insertions
    assert total == sum(distances)


def test_a_corpus_rate_is_not_a_mean_of_rates():
    found = wer.word_errors(["yes", "cat dog sun sea"], ["no", "cat dog sun sea"])
    assert found.wer == pytest.approx(1 / 5)  # not (1 + 0) / 2


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("Mr. Brown's colour", "Mister Brown's color"),
        ("Twenty five dollars!", "$25"),
        ("I won't", "i will not"),
        ("hmm, well", "well"),
    ],
)
def test_spelling_case_and_numbers_are_no_errors(said, written):
    assert wer.word_errors([said], [written]).wer == 0


def test_empty_and_ill_fitting_input():
    assert wer.word_errors(["two words"], [""]).deletions == 2
    with pytest.raises(EvaluationError, match="holds no words"):
        wer.word_errors(["two", "[laughs] hmm"], ["two", "three"])


def test_the_interval_holds_the_rate_and_shrinks_to_it():
    said, written = ["cat dog sun"] * 40, ["cat dog sun"] * 20 + ["cat dog"] * 20
    found = wer.word_errors(said, written)
    low, high = wer.bootstrap_interval(*np.array(found.per_clip).T)
    assert low < found.wer < high
    assert f"95 %: {low:.1%} to {high:.1%}" in str(found)
    same = wer.word_errors(said, ["cat dog"] * 40)
    assert "95 %: 33.3% to 33.3%" in str(same) and "40 deleted" in str(same)
    alone = wer.word_errors(said[:1], written[-1:])  # one clip has no interval
    assert "95 %" not in str(alone) and "1 deleted" in str(alone)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40))
def test_a_bootstrap_draws_errors_and_words_of_a_clip_together(errors):
    """Against the resampling written down."""
    errors = np.array(errors)
    words = 3 + np.arange(len(errors)) % 2
    chosen = np.random.default_rng(0).integers(0, len(errors), (200, len(errors)))
    rates = errors[chosen].sum(1) / words[chosen].sum(1)
    expected = np.percentile(rates, [2.5, 97.5])
    found = wer.bootstrap_interval(errors, words, draws=200)
    assert found == pytest.approx(tuple(expected), abs=1e-12)


def test_a_paired_difference():
    said = ["cat dog sun"] * 30
    a = wer.word_errors(said, ["cat dog"] * 30)
    b = wer.word_errors(said, ["cat dog sun"] * 15 + ["cat sun"] * 15)
    gap, (low, high) = wer.wer_difference(a, b)
    assert gap == pytest.approx(a.wer - b.wer)
    assert low < gap < high
    assert wer.wer_difference(a, a) == (0, (0, 0))


@given(a=WORDS.filter(len), b=WORDS)
def test_an_alignment_holds_every_word(a, b):
    parts = wer.align_words(" ".join(a), " ".join(b))
    assert " ".join(p[1] for p in parts if p[1]).split() == a
    assert " ".join(p[2] for p in parts if p[2]).split() == b
    for kind, said, written in parts:
        assert (kind == "equal") == (said == written)


def test_an_alignment_with_nothing():
    assert wer.align_words("", "made up") == [("insert", "", "made up")]
    assert wer.align_words("", "") == []
