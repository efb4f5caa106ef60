"""Labelled sentences: SST-2 where there is one, else sentences that people have rated.

A table is UTF-8, tab-separated, without a heading: a sentence, or two, and the label.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
_NAMES = {"sst2": ("negative", "positive"), "mrpc": ("different", "same")}


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
    """A classification task: what to learn from, to choose by, and to be judged by."""

    name: str
    classes: tuple[str, ...]
    train: Labelled
    val: Labelled
    test: Labelled
    card: str
    is_course_data: bool = True

    def describe(self) -> str:
        return (
            f"{' / '.join(self.classes)}: {len(self.train)} to learn from, "
            f"{len(self.val)} to choose by, {len(self.test)} to be judged by"
        )


def sentiment() -> Task:
    """Is the sentence positive or negative?

    ``MICROBUDGET_DATA/text/sst2`` where it is (train.tsv, dev.tsv), in profile ``full``
    GLUE's SST-2, judged by dev; else sentences of film reviews, rated by people.

    Raises:
        AssetError: nothing here and nothing can be fetched. DataError: a bad table.
    """
    if settings.load().profile == "full" or assets.locate("sst2"):
        return _published("sst2")
    folder = assets.fetch("rated-snippets")
    rows = [(t, float(r)) for _, t, r in _rows(folder / "movies.tsv", 3)]
    rows = [(t, int(r > 0)) for t, r in dict(rows).items() if abs(r) >= _NEUTRAL]
    random.Random(0).shuffle(rows)
    train, val, test = _cut(rows)
    return Task("film snippets", _NAMES["sst2"], train, val, test,
                assets.get("rated-snippets").card())  # fmt: skip


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
    folder = assets.fetch("rated-snippets")
    names = ("movies", "products", "editorials")
    sources = [_by_origin(folder / f"{name}.tsv") for name in names]
    size = min(sum(map(len, groups)) for groups in sources)  # as many of each
    sets: list[list] = [[], [], []]
    for label, groups in enumerate(sources):
        texts = [text for group in groups for text in group][:size]
        third = _HELD_OUT // 3
        bounds = [_end_of_group(groups, third), _end_of_group(groups, 2 * third)]
        parts = [texts[bounds[1] :], texts[: bounds[0]], texts[bounds[0] : bounds[1]]]
        for rows, part in zip(sets, parts, strict=True):
            rows += [(text, label) for text in part]
    for rows in sets:
        random.Random(0).shuffle(rows)
    train, val, test = (Labelled(*zip(*rows, strict=True)) for rows in sets)
    return Task("origins", ("film review", "product review", "editorial"),
                train, val, test, assets.get("rated-snippets").card())  # fmt: skip


def load(folder: str | Path, classes: Sequence[str] = ()) -> Task:
    """A task of your own: train.tsv and dev.tsv, and val.tsv if you have one.

    Without val.tsv a part of train.tsv is held out to choose by. Labels are 0, 1, … A
    sentence of train.tsv that also stands in another table is left out.

    Args:
        classes: names of the labels, in their order.

    Raises:
        DataError: a missing or malformed table, an empty sentence, labels that aren't
            0 … n-1, or that differ from one table to the other.
    """
    folder = Path(folder)
    train, test = read(folder / "train.tsv"), read(folder / "dev.tsv")
    known = set(train.labels)
    if known != set(range(len(known))) or len(known) < 2:
        raise DataError(
            f"{folder / 'train.tsv'} has the labels {sorted(known)[:9]}: they must be "
            "0, 1, … without gaps, and at least two."
        )
    if (folder / "val.tsv").is_file():
        val, train = read(folder / "val.tsv"), _shuffled(train)
    else:
        rows, held_out = _shuffled(train), min(_HELD_OUT, len(train) // 5)
        if not held_out:
            raise DataError(f"{folder / 'train.tsv'} is too small to hold a part out.")
        val = rows.first(held_out)
        train = Labelled(rows.texts[held_out:], rows.labels[held_out:])
    judged = {*val.texts, *test.texts}  # what is learnt by heart says nothing
    train = _only(train, lambda text: text not in judged)
    for name, labelled in (("val", val), ("dev", test)):
        if strange := set(labelled.labels) - known:
            raise DataError(
                f"{name}.tsv has labels that train.tsv hasn't: {sorted(strange)[:9]}. "
                "All tables of a task must have the same classes."
            )
    names = tuple(classes) or tuple(str(label) for label in sorted(known))
    if len(names) != len(known):
        raise DataError(f"{len(names)} names for {len(known)} classes.")
    card = f"tables from the folder {folder.name}"
    return Task(folder.name, names, train, _shuffled(val), _shuffled(test), card,
                is_course_data=False)  # fmt: skip


def read(path: str | Path) -> Labelled:
    """One table.

    Raises:
        DataError: missing, not UTF-8, empty, a line without a label, an empty sentence.
    """
    path = Path(path)
    texts, labels = [], []
    for number, (*sentences, label) in _numbered(path):
        if not sentences or not all(s.strip() for s in sentences):
            raise DataError(f"{path}, line {number}: an empty sentence. Remove it.")
        if len(sentences) > 2 or not label.strip().isdecimal():
            raise DataError(
                f"{path}, line {number}: expected SENTENCE<TAB>LABEL (or two sentences "
                f"and a label) with a whole number as label, found {label[:20]!r} last."
            )
        texts.append(sentences[0] if len(sentences) == 1 else tuple(sentences))
        labels.append(int(label))
    return Labelled(tuple(texts), tuple(labels))


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
            DataError: no sentences, an empty one, labels that don't fit, no room.
        """
        if max_tokens < 4:
            raise DataError(f"max_tokens={max_tokens}: no room for a sentence.")
        texts = labelled.texts
        if not texts or len(texts) != len(labelled.labels):
            raise DataError(f"{len(texts)} sentences, {len(labelled.labels)} labels.")
        pairs = isinstance(texts[0], tuple)
        if any(isinstance(t, tuple) != pairs for t in texts):
            raise DataError("Single sentences and pairs can't be in one set.")
        empty = [i for i, t in enumerate(texts) if not "".join(t).strip()]
        if empty:
            raise DataError(f"Sentence {empty[0]} is empty: there is nothing to read.")
        both = zip(*texts, strict=True) if pairs else [texts]
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


def _shuffled(labelled: Labelled) -> Labelled:
    rows = list(zip(labelled.texts, labelled.labels, strict=True))
    random.Random(0).shuffle(rows)
    return Labelled(*zip(*rows, strict=True))


def _only(labelled: Labelled, wanted: Callable[[Text], bool]) -> Labelled:
    rows = zip(labelled.texts, labelled.labels, strict=True)
    kept = [row for row in rows if wanted(row[0])]
    if not kept:
        raise DataError("Every sentence to learn from is one to be judged by as well.")
    return Labelled(*zip(*kept, strict=True))


def _published(name: str) -> Task:
    folder = assets.fetch(name)
    task = load(folder, _NAMES[name])
    card = assets.get(name).card()
    return Task(name, task.classes, task.train, task.val, task.test, card, False)


def _rows(path: Path, columns: int) -> list[list[str]]:
    return [row for _, row in _numbered(path, columns)]


def _numbered(path: Path, columns: int = 0) -> list[tuple[int, list[str]]]:
    """(line number, columns) of every line that isn't blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"There is no {path}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}).") from error
    rows = [(n, line.split("\t")) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{path} is empty.")
    wanted = columns or max(2, len(rows[0][1]))
    for number, row in rows:
        if len(row) != wanted or wanted < 2:
            raise DataError(f"{path}, line {number}: {len(row)} columns, not {wanted}.")
    return rows


def _by_origin(path: Path) -> list[list[str]]:
    """Sentences, grouped by the review or article they stand in, in random order."""
    groups: dict[str, list[str]] = {}
    for number, text, _ in _rows(path, 3):
        groups.setdefault(number.split("_")[0], []).append(text)
    shuffled = list(groups.values())
    random.Random(0).shuffle(shuffled)
    return shuffled


def _end_of_group(groups: list[list[str]], n: int) -> int:
    """The first end of a group at or after ``n`` sentences."""
    total = 0
    for group in groups:
        if total >= n:
            break
        total += len(group)
    return total


def _cut(rows: list) -> list[Labelled]:
    n = _HELD_OUT
    parts = rows[2 * n :], rows[:n], rows[n : 2 * n]
    return [Labelled(*zip(*part, strict=True)) for part in parts]
