"""What was said and what each model transcribed, to listen to and to read."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from ..data.audio import player
from ..evaluation.wer import align_words
from .figures import BAD

_WRONG = f"color:{BAD};font-weight:bold"
_GONE = f"color:{BAD};text-decoration:line-through"


def compare_transcripts(
    recordings: Sequence[np.ndarray],
    references: Sequence[str],
    transcripts: Mapping[str, Sequence[str]],
):
    """A table for a notebook: a player, what was said, and every model's words.

    Differing words are marked: wrong or additional ones in bold, words left out
    struck through. Transcripts are shown as they are compared: normalised.

    Args:
        recordings: float32 (samples,) at 16 kHz.
        transcripts: model -> its transcript of each.
    """
    from IPython.display import HTML

    head = "".join(f"<th>{html.escape(n)}</th>" for n in ("", "said", *transcripts))
    rows = []
    for i, reference in enumerate(references):
        cells = [player(recordings[i]), html.escape(reference)]
        cells += [
            mark_differences(reference, texts[i]) for texts in transcripts.values()
        ]
        body = "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells)
        rows.append(f"<tr>{body}</tr>")
    return HTML(f"<table><tr>{head}</tr>{''.join(rows)}</table>")


def side_by_side(texts: Mapping[str, Mapping[str, str]]):
    """A table for a notebook: a row for each text, a column for each of its variants.

    Args:
        texts: such as question -> model -> its answer.
    """
    from IPython.display import HTML

    columns = ("", *next(iter(texts.values())))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    cell = '<td style="text-align:left;vertical-align:top">'
    rows = [
        "".join(
            f"{cell}{html.escape(text)}</td>" for text in (name, *variants.values())
        )
        for name, variants in texts.items()
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return HTML(f"<table><tr>{head}</tr>{body}</table>")


def mark_differences(reference: str, hypothesis: str) -> str:
    """A transcript as HTML with what differs from the reference marked."""
    parts = []
    for kind, said, wrote in align_words(reference, hypothesis):
        if kind == "equal":
            parts.append(html.escape(wrote))
        elif kind == "delete":
            parts.append(f'<span style="{_GONE}">{html.escape(said)}</span>')
        else:
            parts.append(f'<span style="{_WRONG}">{html.escape(wrote)}</span>')
    return " ".join(parts)
