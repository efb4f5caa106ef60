"""Questions and answers to teach a small LLM a way of answering."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ..core import settings
from ..core.errors import DataError
from .batching import padded

_OURS = Path(__file__).parent / "dialogues"
_IGNORED = -100  # what torch's cross entropy leaves out
_SHAPE = re.compile(r"Do: [^\n]+\nCost: [^\n]+\nCheck: [^\n]+")


@dataclass(frozen=True)
class Pair:
    question: str
    answer: str


@dataclass(frozen=True)
class AnswerStyle:
    """Pairs to learn from and others to be judged by."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    card: str
    is_course_data: bool = True


def load() -> AnswerStyle:
    """The course's own pairs, or ``MICROBUDGET_DATA/dialogue``'s.

    A folder of yours holds train.jsonl and test.jsonl, one
    ``{"question": …, "answer": …}`` a line.

    Raises:
        DataError: a file is missing, or a line isn't such a pair.
    """
    own = settings.load().data
    folder = own / "dialogue" if own and (own / "dialogue").is_dir() else _OURS
    card = (
        "Everyday questions, each answered in three lines (Do, Cost, Check)\n"
        "  source   written for this course\n  licence  MIT"
    )
    ours = folder == _OURS
    return AnswerStyle(
        read(folder / "train.jsonl"), read(folder / "test.jsonl"),
        card if ours else "pairs from a folder of yours", ours,
    )  # fmt: skip


def read(path: str | Path) -> tuple[Pair, ...]:
    """Pairs from a file of JSON lines.

    Raises:
        DataError: missing, empty, or a line that is no pair of texts.
    """
    path, pairs = Path(path), []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            pair = Pair(row["question"].strip(), row["answer"].strip())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'{path}, line {number}: expected {{"question": …, "answer": …}} '
                f"({type(error).__name__}: {error})."
            ) from error
        if not pair.question or not pair.answer:
            raise DataError(f"{path}, line {number}: an empty question or answer.")
        pairs.append(pair)
    if not pairs:
        raise DataError(f"{path} is empty.")
    return tuple(pairs)


def follows_format(answer: str) -> bool:
    """Whether an answer is the course's three lines: Do, Cost, Check."""
    return _SHAPE.fullmatch(answer.strip()) is not None


class Dialogues(Dataset):
    """Tokenised dialogues; only the answer's tokens (and its end) are to be learnt.

    Attributes:
        lengths: tokens of every dialogue.
    """

    def __init__(self, tokenizer, pairs: tuple[Pair, ...], max_tokens: int = 256):
        self.rows, self.pad = [], tokenizer.pad_token_id
        if self.pad is None:  # many Llamas have none; padding is masked anyway
            self.pad = tokenizer.eos_token_id
        for pair in pairs:
            asked = prompt(tokenizer, pair.question)
            answer = tokenizer(pair.answer, add_special_tokens=False)["input_ids"]
            ids = [*asked, *answer, tokenizer.eos_token_id]
            if len(asked) >= max_tokens:
                raise DataError(
                    f"{pair.question[:40]!r}… has {len(asked)} tokens: no room for an "
                    f"answer within max_tokens={max_tokens}."
                )
            labels = [_IGNORED] * len(asked) + ids[len(asked) :]
            self.rows.append((ids[:max_tokens], labels[:max_tokens]))
        if not self.rows:
            raise DataError("There are no dialogues to learn from.")
        self.lengths = [len(ids) for ids, _ in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[list[int], list[int]]:
        return self.rows[i]

    def collate(self, rows: list) -> tuple[torch.Tensor, ...]:
        """-> ids, mask, labels, each (batch, tokens), padded on the right."""
        ids, labels = zip(*rows, strict=True)
        return *padded(ids, self.pad), padded(labels, _IGNORED)[0]


def prompt(tokenizer, question: str) -> list[int]:
    """The model's own chat template around a question, up to the answer."""
    if not question.strip():
        raise DataError("An empty question.")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True,
        return_dict=False,
    )  # fmt: skip
