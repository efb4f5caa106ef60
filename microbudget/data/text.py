"""Labelled sentences: SST-2 where there is one, else sentences that people have rated.

A table is UTF-8, tab-separated, without a heading: a sentence, or two, and the label.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch.utils.data import Dataset

from .. import assets
from ..core.checks import as_labels, as_texts
from ..core.errors import DataError
from .batching import pad_token_id, padded
from .files import read_lines, read_text

Text = str | tuple[str, str]
_NEUTRAL = 0.5  # rated sentences nearer to 0 are left out
_HELD_OUT = 872  # for validation, and for the test where there is none: as SST-2's dev
_CLASSES = {"sst2": ("negative", "positive"), "mrpc": ("different", "same")}


@dataclass(frozen=True)
class Labelled:
    """Sentences (or pairs of them) with their classes' numbers."""

    texts: tuple[Text, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, n: int) -> "Labelled":
        """The first ``n``; the loaders below have put them into random order."""
        return Labelled(self.texts[:n], self.labels[:n])


@dataclass(frozen=True)
class Task:
    """A classification task with its three sets."""

    name: str
    classes: tuple[str, ...]
    train: Labelled
    val: Labelled
    test: Labelled
    card: str
    is_course_data: bool

    def describe(self) -> str:
        return (
            f"{' / '.join(self.classes)}: {len(self.train)} train, "
            f"{len(self.val)} validation, {len(self.test)} test"
        )


def sentiment() -> Task:
    """Is the sentence positive or negative?

    ``MICROBUDGET_DATA/text/sst2`` where it is (train.tsv, dev.tsv), in profile ``full``
    GLUE's SST-2, tested on dev; else sentences of film reviews, rated by people.

    Raises:
        AssetError: nothing here and nothing can be fetched. DataError: a bad table.
    """
    if published := _published("sst2"):
        return published
    ratings = {text: float(mean) for _, text, mean in _rated("movies")}
    rows = [(t, int(r > 0)) for t, r in ratings.items() if abs(r) >= _NEUTRAL]
    sets = _cut(_shuffled(rows), [_HELD_OUT, 2 * _HELD_OUT])
    return _course_task("film snippets", _CLASSES["sst2"], sets)


def second_task() -> Task:
    """Another task, for the same encoder.

    ``MICROBUDGET_DATA/text/mrpc`` where it is, in profile ``full`` GLUE's MRPC (do two
    sentences say the same?); else: does the sentence come from a film review, a product
    review or an editorial? No review and no article is in two of its sets.

    Raises:
        AssetError, DataError: as ``sentiment``.
    """
    if published := _published("mrpc"):
        return published
    sources = [_by_origin(name) for name in ("movies", "products", "editorials")]
    size = min(sum(map(len, groups)) for groups in sources)  # as many of each
    sets: list[list] = [[], [], []]  # validation, test, train
    for label, groups in enumerate(sources):
        texts = [text for group in groups for text in group][:size]
        # A set ends where a review or an article does.
        ends = list(accumulate(map(len, groups)))
        third = _HELD_OUT // 3
        bounds = [next(e for e in ends if e >= n) for n in (third, 2 * third)]
        for rows, part in zip(sets, _cut(texts, bounds), strict=True):
            rows += [(text, label) for text in part]
    classes = ("film review", "product review", "editorial")
    return _course_task("origins", classes, map(_shuffled, sets))


def load(folder: str | Path, classes: Sequence[str] = ()) -> Task:
    """A task of your own: train.tsv, a part of which is held out for validation, and
    dev.tsv to test on. Labels are 0, 1, … A sentence of train.tsv that also stands in
    another set is left out.

    Args:
        classes: names of the labels, in their order; without them, or with another
            number of them, the labels themselves.

    Raises:
        DataError: a missing or malformed table, an empty sentence, labels that aren't
            0 … n-1, or that differ from one table to the other.
    """
    folder = Path(folder)
    train, test = _shuffled(_rows(folder / "train.tsv")), _rows(folder / "dev.tsv")
    labels, others = ({label for _, label in rows} for rows in (train, test))
    if labels != set(range(max(2, len(labels)))) or others - labels:
        raise DataError(
            f"{folder}: train.tsv has the labels {sorted(labels)[:9]} and dev.tsv "
            f"{sorted(others)[:9]}. They must be 0, 1, … without gaps, at least two, "
            "and every label of dev.tsv must be in train.tsv."
        )
    val, train = _cut(train, [min(_HELD_OUT, len(train) // 5)])
    # A memorised sentence would say nothing about the model.
    evaluated = {text for text, _ in (*val, *test)}
    train = [row for row in train if row[0] not in evaluated]
    if not train or not val:
        raise DataError(f"{folder / 'train.tsv'} is too small to hold a part out.")
    if len(classes) != len(labels):
        classes = map(str, sorted(labels))
    return Task(
        folder.name, tuple(classes),
        _labelled(train), _labelled(_shuffled(val)), _labelled(_shuffled(test)),
        f"tables from the folder {folder.name}", is_course_data=False,
    )  # fmt: skip


def without_vowels(text: str) -> str:
    """The course's dialect: no vowels, but no word disappears ("I am" -> "I m")."""
    words = [
        "".join(c for c in w if c not in "aeiouAEIOU") or w[0] for w in text.split()
    ]
    return " ".join(words)


class Sentences(Dataset):
    """Tokenised sentences whose batches are padded to their own longest, no further.

    Attributes:
        lengths: tokens of every sentence, to batch those of like length.
    """

    def __init__(self, tokenizer, labelled: Labelled, max_tokens: int = 64):
        """Pairs are told apart by separators only, as RoBERTa does: no segment ids.

        Raises:
            DataError: a sentence is empty or no text, labels that aren't whole numbers.
        """
        texts = as_texts(labelled.texts, DataError, "sentences")
        empty = [i for i, t in enumerate(texts) if not "".join(t).strip()]
        if empty:
            raise DataError(f"Sentence {empty[0]} is empty: there is nothing to read.")
        both = zip(*texts, strict=True) if isinstance(texts[0], tuple) else [texts]
        self.ids = tokenizer(
            *map(list, both), truncation=True, max_length=max_tokens,
            return_attention_mask=False, return_token_type_ids=False,
        )["input_ids"]  # fmt: skip
        self.pad = pad_token_id(tokenizer)
        # only a head knows how many classes there are
        self.labels = as_labels(labelled.labels, None, DataError, len(texts))
        self.lengths = [len(ids) for ids in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[list[int], int]:
        return self.ids[i], int(self.labels[i])

    def collate(self, rows: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """-> ids (batch, tokens), mask (batch, tokens), labels (batch,)."""
        ids, labels = zip(*rows, strict=True)
        return *padded(ids, self.pad), torch.tensor(labels)


def _published(name: str) -> Task | None:
    if folder := assets.find_real(name):
        task = load(folder, _CLASSES[name])
        return replace(task, name=name, card=assets.get(name).card())


def _course_task(name: str, classes: tuple[str, ...], sets: Iterable) -> Task:
    """Of (sentence, label) for validation, for the test and to train on."""
    val, test, train = map(_labelled, sets)
    card = assets.get("rated-snippets").card()
    return Task(name, classes, train, val, test, card, is_course_data=True)


def _rows(path: Path) -> list[tuple[Text, int]]:
    """(sentence or pair, label) of every line that isn't blank."""
    rows = []
    for number, line in read_lines(path):
        *sentences, label = line.split("\t")
        is_text = len(sentences) in (1, 2) and all(map(str.strip, sentences))
        if not is_text or not label.strip().isdecimal():
            raise DataError(
                f"{path}, line {number}: expected SENTENCE<TAB>LABEL (or two sentences "
                f"and a label), no sentence empty, the label a whole number; found "
                f"{len(sentences)} sentences and the label {label[:20]!r}."
            )
        text = sentences[0] if len(sentences) == 1 else tuple(sentences)
        rows.append((text, int(label)))
    if len({type(text) for text, _ in rows}) != 1:
        raise DataError(f"{path} is empty, or has one sentence here and two there.")
    return rows


def _rated(name: str) -> list[list[str]]:
    """(id, sentence, mean rating) of the rated sentences of one source."""
    table = read_text(assets.fetch("rated-snippets") / f"{name}.tsv")
    return [line.split("\t") for line in table.strip().split("\n")]


def _by_origin(name: str) -> list[list[str]]:
    """Sentences, grouped by the review or article they stand in, in random order."""
    groups: dict[str, list[str]] = {}
    for number, text, _ in _rated(name):
        groups.setdefault(number.split("_")[0], []).append(text)
    return _shuffled(groups.values())


def _shuffled(rows: Iterable) -> list:
    rows = list(rows)
    random.Random(0).shuffle(rows)
    return rows


def _cut(rows: list, bounds: list[int]) -> list[list]:
    return [rows[a:b] for a, b in pairwise([0, *bounds, len(rows)])]


def _labelled(rows: Iterable[tuple[Text, int]]) -> Labelled:
    return Labelled(*zip(*rows, strict=True))
