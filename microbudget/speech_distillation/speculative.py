"""Speculative decoding: the student drafts, the teacher verifies, with the same result.

Leviathan, Kalman and Matias 2023, Fast Inference from Transformers via Speculative
Decoding (arXiv:2211.17192); the greedy case: what the teacher would not have chosen
itself is thrown away, so the transcript is the teacher's own, token for token (up to
rounding: in bfloat16 a tie may fall the other way when several are checked at once).
"""

from dataclasses import dataclass

import torch

from ..models import whisper_forward as forward
from ..models.whisper import Whisper
from .decoding import DecodingRules


@dataclass(frozen=True)
class Speculation:
    """What one clip took.

    Attributes:
        tokens: the transcript, without prompt and end.
        drafted, accepted: tokens the student proposed, and those that stayed.
    """

    tokens: list[int]
    drafted: int
    accepted: int


@torch.inference_mode()
def speculate(
    teacher: Whisper,
    student: Whisper,
    states: torch.Tensor,
    draft_tokens: int = 4,
    max_tokens: int = 224,
) -> Speculation:
    """Decode one clip: the student proposes ``draft_tokens``, the teacher checks them.

    Args:
        states: (1, f, d) of the encoder that the two share.
    """
    assert len(states) == 1 and draft_tokens >= 1
    decoder, rules = teacher.model.model.decoder, DecodingRules(teacher)
    student_decoder = student.model.model.decoder
    prompt = len(rules.prompt)
    room = min(prompt + max_tokens, len(decoder.embed_positions.weight))
    cache = forward.new_cache(decoder, states, room + draft_tokens)
    student_cache = forward.new_cache(student_decoder, states, room + draft_tokens)
    tokens = rules.prompt.tolist()
    drafted = accepted = 0
    while len(tokens) < room and tokens[-1] != rules.end:
        most = min(draft_tokens, room - len(tokens) - 1)
        draft = _draft(student_decoder, rules, student_cache, tokens, most)
        unseen = torch.tensor([(tokens + draft)[cache.length :]], device=states.device)
        hidden = forward.decode(decoder, unseen, cache=cache)[0, -len(draft) - 1 :]
        logits = forward.project(decoder, hidden)  # (draft + 1, vocabulary)
        rules.suppress_(logits, False)
        if len(tokens) == prompt:
            rules.suppress_(logits[0], True)
        best = logits.argmax(-1).tolist()
        same = 0
        while same < len(draft) and draft[same] == best[same] != rules.end:
            same += 1
        tokens += [*draft[:same], best[same]]  # and one of the teacher's own
        # Both caches hold keys of rejected tokens: setting the length back drops them.
        cache.length = len(tokens) - 1
        student_cache.length = min(student_cache.length, len(tokens) - 1)
        drafted, accepted = drafted + len(draft), accepted + same
    if tokens[-1] == rules.end:
        tokens.pop()
    return Speculation(tokens[prompt:], drafted, accepted)


def _draft(decoder, rules: DecodingRules, cache, tokens: list[int], most: int):
    """Up to ``most`` of the student's tokens after ``tokens``; it stops at the end."""
    draft: list[int] = []
    while len(draft) < most:
        unseen = torch.tensor(
            [(tokens + draft)[cache.length :]], device=cache.keys.device
        )
        hidden = forward.decode(decoder, unseen, cache=cache)[0, -1]  # (d,)
        is_first = cache.length == len(rules.prompt)
        logits = rules.suppress_(forward.project(decoder, hidden), is_first)
        draft.append(int(logits.argmax()))
        if draft[-1] == rules.end:
            break
    return draft
