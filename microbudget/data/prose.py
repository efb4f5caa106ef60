"""English text for a language model: to calibrate on, and held out to test on.

WikiText-2 and LAMBADA where they are; else the documentation that every Python ships.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import assets
from ..core import settings
from ..core.errors import DataError
from . import jsonl

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
    is_course_data: bool = True


@dataclass(frozen=True)
class Passage:
    """A passage and the word it ends with.

    Attributes:
        context: the text before it, without the space between.
    """

    context: str
    word: str


def load() -> Prose:
    """``MICROBUDGET_DATA/text/wikitext2`` (valid.txt, test.txt), or Python's topics.

    Of WikiText-2 the validation text is for calibration and the test text is held out;
    so it is in profile ``full``. Of Python's documentation (``pydoc_data.topics``) the
    first half is for calibration and the second is held out.

    Raises:
        AssetError: profile full, and nothing can be fetched. DataError: an empty file,
            or a Python without its documentation.
    """
    if settings.load().profile == "full" or assets.locate("wikitext2"):
        folder = assets.fetch("wikitext2")
        card = assets.get("wikitext2").card()
        texts = read(folder / "valid.txt"), read(folder / "test.txt")
        return Prose("WikiText-2", *texts, card, is_course_data=False)
    calibration, held_out = halves(_python_topics())
    card = (
        "Topics of the Python language reference\n"
        "  source   pydoc_data.topics, part of every Python (its text differs a little "
        "from version to version)\n  licence  PSF-2.0"
    )
    return Prose("Python's documentation", calibration, held_out, card)


def halves(text: str) -> tuple[str, str]:
    """Two halves of a text that share no paragraph, whatever its white space.

    Where the second repeats a paragraph, of the first or its own, that is left out:
    topics of documentation quote each other.
    """
    middle = text.index("\n\n", len(text) // 2)
    first, second = text[:middle], []
    seen = {_flat(paragraph) for paragraph in _PARAGRAPHS.split(first)}
    for paragraph in _PARAGRAPHS.split(text[middle:].strip()):
        if _flat(paragraph) not in seen:
            second.append(paragraph)
        seen.add(_flat(paragraph))
    return first, "\n\n".join(second)


def _flat(paragraph: str) -> str:
    return " ".join(paragraph.split())


def last_words(n: int | None = None) -> tuple[str, list[Passage]]:
    """Where passages are from, and the passages, whose last word is to be predicted.

    LAMBADA (Paperno et al. 2016, arXiv:1606.06031) where it is and in profile ``full``;
    else sentences of the held-out half of Python's documentation, each with what stands
    before it in its paragraph.

    Args:
        n: at most so many, evenly spread.

    Raises:
        AssetError, DataError: as ``load``; a line of LAMBADA that is no passage.
    """
    if settings.load().profile == "full" or assets.locate("lambada"):
        name, found = "LAMBADA", _lambada(assets.fetch("lambada"))
    else:
        name, found = "Python's documentation", sentences_of(load().held_out)
    if n is not None and n < len(found):
        found = [found[i * len(found) // n] for i in range(n)]
    return name, found


def calibration_ids(tokenizer, text: str, sequences: int, tokens: int) -> torch.Tensor:
    """Token ids (sequences, tokens), evenly spread over a text.

    Raises:
        DataError: the text is too short for it.
    """
    ids = _enough_ids(tokenizer, text, sequences, tokens)
    last = len(ids) - tokens
    starts = torch.linspace(0, last, sequences, dtype=torch.float64).long()
    return torch.stack([ids[start : start + tokens] for start in starts])


def windows(tokenizer, text: str, n: int, tokens: int) -> torch.Tensor:
    """The first n·tokens ids of a text as windows (n, tokens) without overlap.

    Raises:
        DataError: the text is too short for it.
    """
    ids = _enough_ids(tokenizer, text, n, tokens)
    return ids[: n * tokens].view(n, tokens)


def token_ids(tokenizer, text: str) -> torch.Tensor:
    """int64 (tokens,), without special tokens."""
    found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(found)


def _enough_ids(tokenizer, text: str, rows: int, tokens: int) -> torch.Tensor:
    ids = token_ids(tokenizer, text)
    if len(ids) < rows * tokens:
        raise DataError(
            f"{rows} × {tokens} tokens wanted, but the text has {len(ids)}: use fewer, "
            "or a longer text."
        )
    return ids


def read(path: Path) -> str:
    """A UTF-8 text; WikiText's headings and blank lines are dropped.

    Raises:
        DataError: missing, empty or not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}).") from error
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


def _python_topics() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "This Python comes without its documentation (pydoc_data). Install the "
            "standard library in full, or put WikiText-2 in "
            "MICROBUDGET_DATA/text/wikitext2 (valid.txt, test.txt)."
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def _lambada(folder: Path) -> list[Passage]:
    files = sorted(folder.rglob("*.jsonl"))
    if len(files) != 1:
        raise DataError(f"{folder} holds {len(files)} .jsonl files: put one there.")
    found = []
    for number, (text,) in enumerate(jsonl.read(files[0], "text"), 1):
        context, _, word = text.rpartition(" ")
        if not context:
            raise DataError(f"{files[0]}, line {number}: a passage needs two words.")
        found.append(Passage(context, word))
    return found
