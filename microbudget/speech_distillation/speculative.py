"""Speculative decoding: the student drafts, the teacher verifies; its words, sooner.

Leviathan, Kalman and Matias 2023, Fast Inference from Transformers via Speculative
Decoding (arXiv:2211.17192); the greedy case: what the teacher would not have written
itself is thrown away, so the transcript is the teacher's own, token for token (up to
rounding: in bfloat16 a tie may fall the other way when several are checked at once).
"""

from dataclasses import dataclass

import torch

from ..core.errors import MicrobudgetError
from ..models import whisper_forward as forward
from ..models.whisper import Whisper
from .decoding import Rules


@dataclass(frozen=True)
class Draft:
    """What one clip took.

    Attributes:
        tokens: the transcript, without prompt and end.
        passes: through the teacher's decoder (plain decoding needs one a token).
        drafted, accepted: tokens the student proposed, and those that stayed.
    """

    tokens: list[int]
    passes: int
    drafted: int
    accepted: int


@torch.inference_mode()
def speculate(
    teacher: Whisper,
    student: Whisper,
    states: torch.Tensor,
    draft: int = 4,
    max_tokens: int = 224,
) -> Draft:
    """Decode one clip: the student writes ``draft`` tokens ahead, the teacher checks.

    Args:
        states: (1, f, d) of the encoder that the two share.

    Raises:
        MicrobudgetError: more than one clip, a draft of none, or another encoder.
    """
    if len(states) != 1 or draft < 1:
        raise MicrobudgetError("speculate takes one clip, and drafts of at least 1.")
    _require_one_encoder(teacher, student)
    big, small = teacher.model.model.decoder, student.model.model.decoder
    rules = Rules(teacher)
    first = len(rules.prompt)
    room = min(first + max_tokens, len(big.embed_positions.weight))
    ours = forward.new_cache(big, states, room + draft)
    theirs = forward.new_cache(small, states, room + draft)
    written = rules.prompt.tolist()
    passes = drafted = accepted = 0
    while len(written) < room and written[-1] != rules.end:
        ahead = min(draft, room - len(written) - 1)
        guess = _write(small, rules, theirs, written, ahead)
        new = torch.tensor([(written + guess)[ours.length :]], device=states.device)
        hidden = forward.decode(big, new, cache=ours)[0, -len(guess) - 1 :]
        logits = forward.project(big, hidden)  # (guessed + 1, vocabulary)
        rules.apply(logits, False)
        if len(written) == first:
            rules.apply(logits[0], True)
        best = logits.argmax(-1).tolist()
        same = 0
        while same < len(guess) and guess[same] == best[same] != rules.end:
            same += 1
        written += [*guess[:same], best[same]]  # and one of the teacher's own
        # keys of rejected tokens are forgotten
        ours.length = len(written) - 1
        theirs.length = min(theirs.length, len(written) - 1)
        passes, drafted, accepted = passes + 1, drafted + len(guess), accepted + same
    if written[-1] == rules.end:
        written.pop()
    return Draft(written[first:], passes, drafted, accepted)


def _write(decoder, rules: Rules, cache, written: list[int], n: int) -> list[int]:
    """Up to ``n`` tokens of the student's after ``written``; it stops at the end."""
    guess: list[int] = []
    while len(guess) < n:
        new = torch.tensor(
            [(written + guess)[cache.length :]], device=cache.keys.device
        )
        hidden = forward.decode(decoder, new, cache=cache)[0, -1]
        first = cache.length == len(rules.prompt)
        logits = rules.apply(forward.project(decoder, hidden), first)
        guess.append(int(logits.argmax()))
        if guess[-1] == rules.end:
            break
    return guess


def _require_one_encoder(teacher: Whisper, student: Whisper) -> None:
    a, b = (w.model.model.encoder.layers[-1].fc2.weight for w in (teacher, student))
    if a is not b and (a.shape != b.shape or not torch.equal(a, b)):
        raise MicrobudgetError(
            f"{student.name} has another encoder than {teacher.name}: a draft needs a "
            "student that was distilled from this teacher."
        )
