"""Sentences: whole tables, no leaks between sets, clear words about bad ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentences import labelled, sentences, tokenizer

from microbudget.core.errors import DataError
from microbudget.data import text


def write(folder, name="train.tsv", rows=()):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path):
    """A folder with a good task; a test spoils it."""
    write(tmp_path / "t", "train.tsv", [f"sentence {i}\t{i % 2}" for i in range(20)])
    write(tmp_path / "t", "dev.tsv", ["a good one\t1", "a bad one\t0"])
    return tmp_path / "t"


def test_the_embedded_task_is_balanced_and_its_sets_share_no_sentence(monkeypatch):
    monkeypatch.delenv("MICROBUDGET_DATA", raising=False)
    task = text.sentiment()
    sets = [set(part.texts) for part in (task.train, task.val, task.test)]
    assert sum(map(len, sets)) == len(task.train) + len(task.val) + len(task.test)
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    for part in (task.train, task.val, task.test):
        assert 0.45 < sum(part.labels) / len(part) < 0.55
    assert len(task.test) == 872
    ratings = {words: float(mean) for _, words, mean in text._rated("movies")}
    for sentence, label in zip(task.test.texts, task.test.labels, strict=True):
        assert abs(ratings[sentence]) >= 0.5  # people's mean rating: none is neutral
        assert label == (ratings[sentence] > 0)
    assert task.is_course_data
    assert "rated" in task.card


def test_no_review_and_no_article_is_in_two_sets(monkeypatch):
    monkeypatch.delenv("MICROBUDGET_DATA", raising=False)
    task = text.second_task()
    origin = {}
    for name in ("products", "editorials"):
        for number, sentence, _ in text._rated(name):
            origin.setdefault(sentence, set()).add(f"{name} {number.split('_')[0]}")
    once = {s: next(iter(o)) for s, o in origin.items() if len(o) == 1}
    groups = [
        {once[s] for s in part.texts if s in once}
        for part in (task.train, task.val, task.test)
    ]
    assert all(groups)
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_a_folder_of_real_data_wins(tmp_path, monkeypatch, table):
    (tmp_path / "data" / "text").mkdir(parents=True)
    table.rename(tmp_path / "data" / "text" / "sst2")
    monkeypatch.setenv("MICROBUDGET_DATA", str(tmp_path / "data"))
    task = text.sentiment()
    assert (task.name, task.classes) == ("sst2", ("negative", "positive"))
    assert (len(task.train), len(task.val), len(task.test)) == (16, 4, 2)
    assert not set(task.train.texts) & set(task.val.texts)
    assert not task.is_course_data


def test_no_sentence_is_evaluated_and_trained_on(table):
    twice = [f"sentence {i}\t{i % 2}" for i in range(20)] * 2
    write(table, "train.tsv", [*twice, "a good one\t1"])
    task = text.load(table)
    evaluated = {*task.val.texts, *task.test.texts}
    assert "a good one" in evaluated
    assert not evaluated & set(task.train.texts)


def test_tables_sorted_by_label_are_shuffled(table):
    rows = [f"sentence no. {i}\t{i // 50}" for i in range(100)]
    write(table, "dev.tsv", rows)
    assert 10 < sum(text.load(table).test.first(50).labels) < 40


def test_line_numbers_count_blank_lines(tmp_path):
    with pytest.raises(DataError, match="line 4"):
        text._rows(
            write(tmp_path, rows=["\ufefffine\t1", "", "odd\u2028end\t0", "x\t?"])
        )


def test_two_sentences_a_line_are_a_pair(table):
    write(table, "train.tsv", [f"one {i}\ttwo\t{i % 2}" for i in range(10)])
    write(table, "dev.tsv", ["five\tsix\t1"])
    task = text.load(table)
    data = text.Sentences(tokenizer(), task.train)
    separator = tokenizer().sep_token_id
    assert data.ids[0].count(separator) == 2


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["fine\t1", "\t0"], "line 2: expected"),
        (["fine\t1", "good"], "line 2: expected"),
        (["fine\tgood"], "the label 'good'"),
        (["fine\t-1"], "the label '-1'"),
        (["a\tb\tc\t1"], "found 3 sentences"),
        (["a\tb\t1", "a\t1"], "one sentence here and two there"),
        ([], "is empty"),
        (["no tab at all"], "found 0 sentences"),
    ],
)
def test_a_bad_line_is_named(tmp_path, rows, says):
    with pytest.raises(DataError, match=says):
        text._rows(write(tmp_path, rows=rows))


def test_tables_are_read_as_they_are(tmp_path):
    path = tmp_path / "t.tsv"
    with pytest.raises(DataError, match=r"t\.tsv can't be read"):
        text._rows(path)
    path.write_bytes("caf\xe9\t1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.tsv can't be read"):
        text._rows(path)
    path.write_bytes(b'"a "quoted\t1\r\nplain"\t0\r\n')
    assert text._rows(path) == [('"a "quoted', 1), ('plain"', 0)]


@pytest.mark.parametrize(
    ("train", "dev", "says"),
    [
        (["a\t0", "b\t1"] * 9, ["c\t2"], r"dev.tsv \[2\]"),
        (["a\t0", "b\t2"] * 9, ["c\t0"], "without gaps"),
        (["a\t1", "b\t2"] * 9, ["c\t1"], "without gaps"),
        (["a\t0"] * 18, ["c\t0"], "at least two"),
        (["a\t0", "b\t1"], ["c\t0"], "too small"),
    ],
)
def test_label_sets_that_dont_fit_are_refused(table, train, dev, says):
    numbered = [f"{i} {row}" for i, row in enumerate(train)]
    write(table, "train.tsv", numbered)
    write(table, "dev.tsv", dev)
    with pytest.raises(DataError, match=says):
        text.load(table)


def test_empty_sentences_are_refused_and_long_ones_cut():
    with pytest.raises(DataError, match="Sentence 1 is empty"):
        text.Sentences(tokenizer(), text.Labelled(("a", "  "), (0, 1)))
    long = text.Labelled((" ".join(["word"] * 500), "short"), (0, 1))
    assert text.Sentences(tokenizer(), long, max_tokens=32).lengths == [32, 3]


def test_a_batch_is_padded_to_its_own_longest_and_no_further():
    data = sentences()
    ids, mask, labels = data.collate([data[1], data[3]])
    longest = max(data.lengths[1], data.lengths[3])
    assert longest % 4 > 0  # so that nothing was rounded up
    assert data.lengths[1] != data.lengths[3]
    assert ids.shape == mask.shape == (2, longest)
    assert mask.sum(1).tolist() == [data.lengths[1], data.lengths[3]]
    assert (ids[mask == 0] == data.pad).all()
    assert labels.tolist() == [labelled().labels[1], labelled().labels[3]]
    assert torch.equal(ids[0, : data.lengths[1]], torch.tensor(data.ids[1]))


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_the_dialect_drops_vowels_and_no_word(sentence):
    short = text.without_vowels(sentence)
    assert len(short.split()) == len(sentence.split())
    for before, after in zip(sentence.split(), short.split(), strict=True):
        assert not set(after) & set("aeiouAEIOU") or after == before[0]
        assert [c for c in before if c not in "aeiouAEIOU"] in ([], list(after))
    assert text.without_vowels("I am not amused") == "I m nt msd"
