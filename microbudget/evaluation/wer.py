"""How well speech was transcribed: word error rates and where the errors are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..core.errors import EvaluationError
from .metrics import bootstrap_interval


@dataclass(frozen=True)
class WordErrors:
    """Counts over a whole corpus; add them up, never average rates of single clips.

    Attributes:
        per_clip: (errors, reference words) of every clip, in order.
    """

    substitutions: int
    deletions: int
    insertions: int
    words: int
    per_clip: tuple[tuple[int, int], ...]

    @property
    def wer(self) -> float:
        """Word error rate: (S + D + I) / reference words. It can exceed 1."""
        return (self.substitutions + self.deletions + self.insertions) / self.words

    def interval(self, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the rate, over clips (Bisani and Ney 2004)."""
        errors, words = np.array(self.per_clip).T
        return bootstrap_interval(_rate, errors, words, draws=draws, seed=seed)

    def __str__(self) -> str:
        interval = ""
        if len(self.per_clip) > 1:
            interval = "95 %: {:.1%} to {:.1%}; ".format(*self.interval())
        return (
            f"WER {self.wer:6.1%} ({interval}{self.substitutions} substituted, "
            f"{self.deletions} deleted, {self.insertions} inserted of "
            f"{self.words} words)"
        )


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Count word errors over a corpus, after Whisper's English normalizer (jiwer).

    Args:
        references: what was said; hypotheses: what was written, clip by clip. An empty
            hypothesis counts every word as deleted.

    Raises:
        EvaluationError: a reference without words.
    """
    import jiwer

    said = [normalize_text(text) for text in references]
    for text, normal in zip(references, said, strict=True):
        if not normal:
            raise EvaluationError(
                f"The reference {text!r} holds no words: leave it out."
            )
    written = [normalize_text(text) for text in hypotheses]
    found = jiwer.process_words(said, written)
    per_clip = tuple(
        (sum(_length(chunk) for chunk in chunks if chunk.type != "equal"), len(words))
        for chunks, words in zip(found.alignments, found.references, strict=True)
    )
    return WordErrors(
        found.substitutions,
        found.deletions,
        found.insertions,
        sum(words for _, words in per_clip),
        per_clip,
    )


def wer_difference(
    a: WordErrors, b: WordErrors, draws: int = 2000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """WER of ``a`` minus that of ``b`` on the same clips, and its 95 % interval.

    The same clips are drawn for both (paired bootstrap), so what is hard for both
    cancels out.
    """
    (first, words), (second, same_words) = (
        np.array(a.per_clip).T,
        np.array(b.per_clip).T,
    )
    assert (words == same_words).all(), "the two are of other clips"
    interval = bootstrap_interval(_rate, first - second, words, draws=draws, seed=seed)
    return a.wer - b.wer, interval


def align_words(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """How a transcript differs: (kind, words said, words written), in order.

    kind is ``equal``, ``substitute``, ``delete`` or ``insert``; words are normalized.
    """
    import jiwer

    said, written = normalize_text(reference), normalize_text(hypothesis)
    if not said:
        return [("insert", "", written)] if written else []
    found = jiwer.process_words(said, written)
    says, writes = found.references[0], found.hypotheses[0]
    return [
        (
            chunk.type,
            " ".join(says[chunk.ref_start_idx : chunk.ref_end_idx]),
            " ".join(writes[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in found.alignments[0]
    ]


def normalize_text(text: str) -> str:
    """Whisper's English normalizer: case, punctuation, numbers, spelling."""
    return _normalizer()(text).strip()


@cache
def _normalizer():
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def _length(chunk) -> int:
    said = chunk.ref_end_idx - chunk.ref_start_idx
    return max(said, chunk.hyp_end_idx - chunk.hyp_start_idx)


def _rate(errors: np.ndarray, words: np.ndarray, axis: int) -> np.ndarray:
    return errors.sum(axis) / words.sum(axis)
