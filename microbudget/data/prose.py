"""English text for a language model: to calibrate on, and held out to test on.

WikiText-2 and LAMBADA where they are; else the documentation that every Python ships.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from .. import assets
from ..core.errors import DataError
from .files import read_jsonl, read_lines
from .speech import evenly_spaced

_SENTENCE_END = re.compile(r"\b([a-z]{4,})\.(?= [A-Z]|$)")
_PARAGRAPHS = re.compile(r"\n\s*\n")
_CONTEXT = 30  # words before the last one, at least
_HEADING = re.compile(r"^ = .* = $")  # WikiText's


@dataclass(frozen=True)
class Prose:
    """Two texts that share no passage.

    Attributes:
        calibration: what quantization may look at.
        held_out: what models are evaluated on.
    """

    name: str
    calibration: str
    held_out: str
    card: str
    is_course_data: bool


class Passage(NamedTuple):
    """A passage and the word it ends with, without the space between."""

    context: str
    word: str


def load() -> Prose:
    """``MICROBUDGET_DATA/text/wikitext2`` (valid.txt, test.txt), or Python's topics.

    Of WikiText-2 the validation text is for calibration and the test text is held out;
    so it is in profile ``full``. Of Python's documentation (``pydoc_data.topics``) the
    first half is for calibration and the second is held out.

    Raises:
        AssetError: profile full, and nothing can be fetched. DataError: an empty file.
    """
    if folder := assets.find_real("wikitext2"):
        card = assets.get("wikitext2").card()
        texts = read(folder / "valid.txt"), read(folder / "test.txt")
        return Prose("WikiText-2", *texts, card, is_course_data=False)
    from pydoc_data.topics import topics

    calibration, held_out = _halves(
        "\n\n".join(text for _, text in sorted(topics.items()))
    )
    card = (
        "Topics of the Python language reference\n"
        "  source   pydoc_data.topics, part of every Python (its text differs a little "
        "from version to version)\n  licence  PSF-2.0"
    )
    return Prose("Python's documentation", calibration, held_out, card, True)


def _halves(text: str) -> tuple[str, str]:
    """Two halves of a text that share no paragraph, whatever its white space.

    Where the second repeats a paragraph, of the first or its own, that is left out:
    topics of documentation quote each other.
    """
    middle = text.find("\n\n", len(text) // 2)
    if middle < 0:
        raise DataError("The text has one paragraph only: it can't be halved.")
    first, second = text[:middle], []
    seen = {_flat(paragraph) for paragraph in _PARAGRAPHS.split(first)}
    for paragraph in _PARAGRAPHS.split(text[middle:].strip()):
        if _flat(paragraph) not in seen:
            second.append(paragraph)
        seen.add(_flat(paragraph))
    return first, "\n\n".join(second)


def _flat(paragraph: str) -> str:
    return " ".join(paragraph.split())


def last_words(n: int) -> tuple[str, tuple[Passage, ...]]:
    """Where passages are from, and the passages, whose last word is to be predicted.

    LAMBADA (Paperno et al. 2016, arXiv:1606.06031) where it is and in profile ``full``;
    else sentences of the held-out half of Python's documentation, each with what stands
    before it in its paragraph.

    Args:
        n: at most so many, evenly spread.

    Raises:
        AssetError, DataError: as ``load``; a line of LAMBADA that is no passage.
    """
    if folder := assets.find_real("lambada"):
        name, found = "LAMBADA", _lambada(folder)
    else:
        name, found = "Python's documentation", sentences_of(load().held_out)
    return name, evenly_spaced(found, n)


def calibration_ids(tokenizer, text: str, sequences: int, tokens: int) -> torch.Tensor:
    """Token ids (sequences, tokens), evenly spread over a text.

    Raises:
        DataError: the text is too short for it.
    """
    ids = token_ids(tokenizer, text, sequences * tokens)
    last = len(ids) - tokens
    starts = torch.linspace(0, last, sequences, dtype=torch.float64).long()
    return torch.stack([ids[start : start + tokens] for start in starts])


def windows(tokenizer, text: str, n: int, tokens: int) -> torch.Tensor:
    """The first n·tokens ids of a text as windows (n, tokens) without overlap.

    Raises:
        DataError: the text is too short for it.
    """
    return token_ids(tokenizer, text, n * tokens)[: n * tokens].view(n, tokens)


def token_ids(tokenizer, text: str, at_least: int = 0) -> torch.Tensor:
    """int64 (tokens,), without special tokens.

    Raises:
        DataError: there are fewer than ``at_least``.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < at_least:
        raise DataError(
            f"{at_least:,} tokens wanted, but the text has {len(ids):,}: use fewer, or "
            "a longer text."
        )
    return torch.tensor(ids)


def read(path: Path) -> str:
    """A UTF-8 text; WikiText's headings and blank lines are dropped."""
    lines = [line for _, line in read_lines(path)]
    kept = [line for line in lines if line.strip() and not _HEADING.match(line)]
    if not kept:
        raise DataError(f"{path} is empty.")
    return "\n".join(kept)


def sentences_of(text: str) -> list[Passage]:
    """A paragraph's beginning up to a word that ends a sentence, one a paragraph.

    The first such word is taken that has enough words before it, the text being read
    without line breaks.
    """
    found = []
    for paragraph in _PARAGRAPHS.split(text):
        flat = _flat(paragraph)
        for end in _SENTENCE_END.finditer(flat):
            context = flat[: end.start()].rstrip()
            if len(re.findall(r"[A-Za-z]+", context)) >= _CONTEXT:
                found.append(Passage(context, end.group(1)))
                break
    return found


def _lambada(folder: Path) -> list[Passage]:
    files = sorted(folder.rglob("*.jsonl"))
    if len(files) != 1:
        raise DataError(f"{folder} holds {len(files)} .jsonl files: put one there.")
    found = []
    for number, (text,) in enumerate(read_jsonl(files[0], "text"), 1):
        context, _, word = text.rpartition(" ")
        if not context:
            raise DataError(f"{files[0]}, line {number}: a passage needs two words.")
        found.append(Passage(context, word))
    return found
