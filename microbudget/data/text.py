"""Labelled sentences: SST-2 where there is one, else sentences that people have rated.

A table is UTF-8, tab-separated, without a heading: a sentence, or two, and the label.
"""

import csv
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch.utils.data import Dataset

from .. import assets
from ..core import settings
from ..core.errors import DataError
from .batching import padded

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
    is_course_data: bool = True

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
    if settings.load().profile == "full" or assets.locate("sst2"):
        return _published("sst2")
    ratings = {text: float(mean) for _, text, mean in _rated("movies")}
    rows = [(t, int(r > 0)) for t, r in ratings.items() if abs(r) >= _NEUTRAL]
    val, test, train = _cut(_shuffled(rows), [_HELD_OUT, 2 * _HELD_OUT])
    return Task("film snippets", _CLASSES["sst2"], _labelled(train), _labelled(val),
                _labelled(test), assets.get("rated-snippets").card())  # fmt: skip


def second_task() -> Task:
    """Another task, for the same encoder.

    ``MICROBUDGET_DATA/text/mrpc`` where it is, in profile ``full`` GLUE's MRPC (do two
    sentences say the same?); else: does the sentence come from a film review, a product
    review or an editorial? No review and no article is in two of its sets.

    Raises:
        AssetError, DataError: as ``sentiment``.
    """
    if settings.load().profile == "full" or assets.locate("mrpc"):
        return _published("mrpc")
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
    val, test, train = (_labelled(_shuffled(rows)) for rows in sets)
    return Task("origins", ("film review", "product review", "editorial"),
                train, val, test, assets.get("rated-snippets").card())  # fmt: skip


def load(folder: str | Path, classes: Sequence[str] = ()) -> Task:
    """A task of your own: train.tsv and dev.tsv, and val.tsv if you have one.

    Without val.tsv a part of train.tsv is held out for validation. Labels are 0, 1, … A
    sentence of train.tsv that also stands in another table is left out.

    Args:
        classes: names of the labels, in their order; without them, or with another
            number of them, the labels themselves.

    Raises:
        DataError: a missing or malformed table, an empty sentence, labels that aren't
            0 … n-1, or that differ from one table to the other.
    """
    folder = Path(folder)
    train, test = _shuffled(_rows(folder / "train.tsv")), _rows(folder / "dev.tsv")
    known = {label for _, label in train}
    if (folder / "val.tsv").is_file():
        val = _rows(folder / "val.tsv")
    else:
        val, train = _cut(train, [min(_HELD_OUT, len(train) // 5)])
    if known != set(range(len(known))) or len(known) < 2:
        raise DataError(
            f"{folder / 'train.tsv'} has the labels {sorted(known)[:9]}: they must be "
            "0, 1, … without gaps, and at least two."
        )
    if strange := {label for _, label in (*val, *test)} - known:
        raise DataError(
            f"{folder} has labels that train.tsv hasn't: {sorted(strange)[:9]}. All "
            "tables of a task must have the same classes."
        )
    # A memorised sentence would say nothing about the model.
    evaluated = {text for text, _ in (*val, *test)}
    train = [row for row in train if row[0] not in evaluated]
    if not train or not val:
        raise DataError(f"{folder / 'train.tsv'} is too small to hold a part out.")
    if len(classes) != len(known):
        classes = [str(label) for label in sorted(known)]
    return Task(
        folder.name, tuple(classes),
        _labelled(train), _labelled(_shuffled(val)), _labelled(_shuffled(test)),
        f"tables from the folder {folder.name}", is_course_data=False,
    )  # fmt: skip


def read(path: str | Path) -> Labelled:
    """One table.

    Raises:
        DataError: missing, not UTF-8, empty, a line without a label, an empty sentence.
    """
    return _labelled(_rows(path))


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
            DataError: no sentences, or an empty one.
        """
        texts = labelled.texts
        if not texts:
            raise DataError("There are no sentences.")
        empty = [i for i, t in enumerate(texts) if not "".join(t).strip()]
        if empty:
            raise DataError(f"Sentence {empty[0]} is empty: there is nothing to read.")
        both = zip(*texts, strict=True) if isinstance(texts[0], tuple) else [texts]
        self.ids = tokenizer(
            *map(list, both), truncation=True, max_length=max_tokens,
            return_attention_mask=False, return_token_type_ids=False,
        )["input_ids"]  # fmt: skip
        self.labels, self.pad = torch.tensor(labelled.labels), tokenizer.pad_token_id
        self.lengths = [len(ids) for ids in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[list[int], int]:
        return self.ids[i], int(self.labels[i])

    def collate(self, rows: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """-> ids (batch, tokens), mask (batch, tokens), labels (batch,)."""
        ids, labels = zip(*rows, strict=True)
        return *padded(ids, self.pad), torch.tensor(labels)


def _published(name: str) -> Task:
    task = load(assets.fetch(name), _CLASSES[name])
    return replace(task, name=name, card=assets.get(name).card())


def _rows(path: str | Path) -> list[tuple[Text, int]]:
    """(sentence or pair, label) of every line that isn't blank."""
    rows = []
    for number, (*sentences, label) in _table(path):
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


def _table(path: str | Path) -> Iterable[tuple[int, list[str]]]:
    """(line number, columns) of every line of a table that isn't blank."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            for columns in lines:
                if any(map(str.strip, columns)):
                    yield lines.line_num, columns
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}).") from error


def _rated(name: str) -> list[list[str]]:
    """(id, sentence, mean rating) of the rated sentences of one source."""
    path = assets.fetch("rated-snippets") / f"{name}.tsv"
    return [columns for _, columns in _table(path)]


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
