"""Prefill and decoding have two speeds: one is bound by compute, one by memory."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import record_function

from .timing import synchronise

SAMPLING = "sampling"  # the profiler's name for choosing the next token


@dataclass(frozen=True)
class Speed:
    """Of one answer.

    Attributes:
        prompt_tokens, prefill_s: the prompt, read at once.
        new_tokens, decode_s: the answer, decoded token by token.
    """

    prompt_tokens: int
    prefill_s: float
    new_tokens: int
    decode_s: float

    @property
    def decode(self) -> float:
        """Tokens a second."""
        return self.new_tokens / max(self.decode_s, 1e-9)

    @property
    def prefill(self) -> float:
        """Tokens a second."""
        return self.prompt_tokens / max(self.prefill_s, 1e-9)

    def __str__(self) -> str:
        return (
            f"reads {self.prefill:,.0f} tokens/s ({self.prompt_tokens}), writes "
            f"{self.decode:,.1f} tokens/s ({self.new_tokens})"
        )


def measure_generation(
    model, ids: torch.Tensor, new_tokens: int = 16, repeats: int = 3
) -> Speed:
    """Median speeds of a transformers model: one prompt, greedy answers.

    One answer before is not counted. The prompt's pass brings the first token; the
    tokens after it are timed.

    Args:
        ids: int64 (1, tokens), the prompt.
        new_tokens: at least two.
    """
    runs = [generate(model, ids, new_tokens) for _ in range(repeats + 1)][1:]
    prefill, decode = map(float, np.median(runs, axis=0))
    return Speed(ids.shape[1], prefill, new_tokens - 1, decode)


@torch.inference_mode()
def generate(model, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Decode greedily once: seconds of the prompt's pass, and of all later ones.

    Args:
        ids: int64 (1, tokens), the prompt.
    """
    device = str(model.device)
    ids = ids.to(model.device)
    synchronise(device)
    started = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    token = _likeliest(out.logits)
    synchronise(device)
    read = time.perf_counter()
    for _ in range(new_tokens - 1):
        out = model(token, use_cache=True, past_key_values=out.past_key_values)
        token = _likeliest(out.logits)
    synchronise(device)
    return read - started, time.perf_counter() - read


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    with record_function(SAMPLING):
        return logits[:, -1:].argmax(-1)  # (batch, 1)
