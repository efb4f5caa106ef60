"""Prefill and decoding have two speeds: one is bound by compute, one by memory."""

from dataclasses import dataclass


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
