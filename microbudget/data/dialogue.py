"""Questions and answers to train a small LLM on a style of answering."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from ..core import settings
from ..core.errors import DataError
from .batching import pad_token_id, padded
from .files import read_jsonl

_OURS = Path(__file__).parent / "dialogues"
_IGNORED = -100  # what torch's cross entropy leaves out
_MAX_TOKENS = 256  # of a question with its answer
_FORMAT = re.compile(r"Do: [^\n]+\nCost: [^\n]+\nCheck: [^\n]+")


class Pair(NamedTuple):
    question: str
    answer: str


@dataclass(frozen=True)
class AnswerStyle:
    """Pairs to train on and others to test on."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    card: str
    is_course_data: bool


def load() -> AnswerStyle:
    """The course's own pairs, or ``MICROBUDGET_DATA/dialogue``'s.

    A folder of yours holds train.jsonl and test.jsonl, one
    ``{"question": …, "answer": …}`` a line.

    Raises:
        DataError: a file is missing, or a line isn't such a pair.
    """
    folder, card = (
        _OURS,
        (
            "Everyday questions, each answered in three lines (Do, Cost, Check)\n"
            "  source   written for this course\n  licence  MIT"
        ),
    )
    data = settings.load().data
    if data and (data / "dialogue").is_dir():
        folder, card = data / "dialogue", f"pairs from the folder {data / 'dialogue'}"
    train, test = (
        tuple(Pair(*row) for row in read_jsonl(folder / name, "question", "answer"))
        for name in ("train.jsonl", "test.jsonl")
    )
    return AnswerStyle(train, test, card, is_course_data=folder == _OURS)


def follows_format(answer: str) -> bool:
    """Whether an answer is the course's three lines: Do, Cost, Check."""
    return _FORMAT.fullmatch(answer.strip()) is not None


class Dialogues(Dataset):
    """Tokenised dialogues; only the answer's tokens (and its end) have labels.

    Attributes:
        lengths: tokens of every dialogue.
    """

    def __init__(self, tokenizer, pairs: tuple[Pair, ...]):
        """Raises DataError where a question leaves no room for its answer."""
        self.rows, self.pad = [], pad_token_id(tokenizer)
        for pair in pairs:
            asked = prompt(tokenizer, pair.question)
            answer = tokenizer(pair.answer, add_special_tokens=False)["input_ids"]
            ids = [*asked, *answer, tokenizer.eos_token_id]
            if len(asked) >= _MAX_TOKENS:
                raise DataError(
                    f"{pair.question[:40]!r}… has {len(asked)} tokens: no room for an "
                    f"answer within {_MAX_TOKENS}. Shorten the question."
                )
            labels = [_IGNORED] * len(asked) + ids[len(asked) :]
            self.rows.append((ids[:_MAX_TOKENS], labels[:_MAX_TOKENS]))
        self.lengths = [len(ids) for ids, _ in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[list[int], list[int]]:
        return self.rows[i]

    def collate(self, rows: list) -> tuple[torch.Tensor, ...]:
        """-> ids, mask, labels, each (batch, tokens), padded on the right."""
        ids, labels = zip(*rows, strict=True)
        return *padded(ids, self.pad), padded(labels, _IGNORED)[0]


def chat_prompt(tokenizer, question: str) -> str:
    """The model's own chat template around a question, up to the answer, as text.

    Raises:
        DataError: an empty question, or a tokenizer without a chat template.
    """
    if not question.strip():
        raise DataError("An empty question.")
    if not tokenizer.chat_template:
        raise DataError(
            "This tokenizer has no chat template: its model wasn't trained on "
            "dialogues. Take an instruct model, or set tokenizer.chat_template."
        )
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, such as one with tools
        template = template.get("default", next(iter(template.values())))
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
    )


def prompt(tokenizer, question: str) -> list[int]:
    """``chat_prompt`` as token ids."""
    text = chat_prompt(tokenizer, question)
    return tokenizer(text, add_special_tokens=False)["input_ids"]
