"""How well speech was transcribed: word error rates and where the errors are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..core.checks import as_texts
from ..core.errors import EvaluationError


@dataclass(frozen=True)
class WordErrors:
    """Counts over a whole corpus; add them up, never average rates of single clips.

    Attributes:
        per_clip: (errors, reference words) of every clip, in order.
    """

    substitutions: int
    deletions: int
    insertions: int
    per_clip: tuple[tuple[int, int], ...]

    @property
    def words(self) -> int:
        return sum(words for _, words in self.per_clip)

    @property
    def wer(self) -> float:
        """Word error rate: (S + D + I) / reference words. It can exceed 1."""
        return (self.substitutions + self.deletions + self.insertions) / self.words

    @property
    def interval(self) -> tuple[float, float]:
        """The rate's 95 % interval: a bootstrap over clips."""
        return bootstrap_interval(*np.array(self.per_clip).T)

    def __str__(self) -> str:
        interval = ""
        if len(self.per_clip) > 1:
            low, high = self.interval
            interval = f"95 %: {low:.1%} to {high:.1%}; "
        return (
            f"WER {self.wer:6.1%} ({interval}{self.substitutions} substituted, "
            f"{self.deletions} deleted, {self.insertions} inserted of "
            f"{self.words} words)"
        )


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Count word errors over a corpus, after Whisper's English normalizer (jiwer).

    Args:
        references: what was said; hypotheses: the transcripts, clip by clip. An empty
            hypothesis counts every word as deleted.

    Raises:
        EvaluationError: a reference without words, one string instead of a list,
            something that is no text, or lists of different lengths.
    """
    import jiwer

    references = as_texts(references, EvaluationError, "references")
    hypotheses = as_texts(hypotheses, EvaluationError, "transcripts")
    if len(references) != len(hypotheses):
        raise EvaluationError(
            f"{len(references)} references and {len(hypotheses)} transcripts: each "
            "clip needs one of both."
        )
    said = [normalize_text(text) for text in references]
    for text, normal in zip(references, said, strict=True):
        if not normal:
            raise EvaluationError(
                f"The reference {text!r} holds no words: leave it out."
            )
    transcripts = [normalize_text(text) for text in hypotheses]
    found = jiwer.process_words(said, transcripts)
    per_clip = []
    for chunks, words in zip(found.alignments, found.references, strict=True):
        # one side of an insertion or deletion is empty
        lengths = [
            max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx)
            for c in chunks
            if c.type != "equal"
        ]
        per_clip.append((sum(lengths), len(words)))
    return WordErrors(
        found.substitutions, found.deletions, found.insertions, tuple(per_clip)
    )


def wer_difference(a: WordErrors, b: WordErrors) -> tuple[float, tuple[float, float]]:
    """WER of ``a`` minus that of ``b`` on the same clips, and its 95 % interval."""
    first, words = np.array(a.per_clip).T
    second, same_words = np.array(b.per_clip).T
    assert (words == same_words).all(), "the two are of other clips"
    return a.wer - b.wer, bootstrap_interval(first - second, words)


def bootstrap_interval(
    errors: np.ndarray, words: np.ndarray, draws: int = 2000
) -> tuple[float, float]:
    """95 % interval of Σ errors / Σ words over the choice of clips.

    Clips are drawn with replacement, their errors and words together (Bisani and Ney
    2004). With the difference of two models' errors this is a paired bootstrap: what
    is hard for both cancels out.

    Args:
        errors, words: (clips,), at least two clips.
    """
    from scipy import stats

    def rate(errors, words, axis):
        return errors.sum(axis) / words.sum(axis)

    found = stats.bootstrap(
        (errors, words), rate, paired=True, vectorized=True, n_resamples=draws,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = found.confidence_interval
    return float(low), float(high)


def align_words(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """How a transcript differs: (kind, words said, words transcribed), in order.

    kind is ``equal``, ``substitute``, ``delete`` or ``insert``; words are normalized.
    """
    import jiwer

    said, transcribed = normalize_text(reference), normalize_text(hypothesis)
    if not said:
        return [("insert", "", transcribed)] if transcribed else []
    found = jiwer.process_words(said, transcribed)
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
