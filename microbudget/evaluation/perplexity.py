"""What a language model knows: perplexity, distance to another, a passage's last word.

A *scorer* is a function from token ids (batch, tokens) to logits (batch, tokens,
vocabulary), so that any engine can be evaluated by the same code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..core.errors import DataError, EvaluationError
from .comparison import Difference, compare

Scorer = Callable[[torch.Tensor], torch.Tensor]
_BLOCK = 32  # neighbouring tokens' losses are alike: their means count as one draw


@dataclass(frozen=True)
class PerplexityResult:
    """How well a model predicted some windows of text.

    Attributes:
        losses: float32 (tokens,), −ln p of every token but each window's first.
        divergence: float32 (tokens,), KL(original ‖ this) in nats; None: no original.
        agrees: bool (tokens,), the likeliest token is the original's; None: likewise.
    """

    losses: torch.Tensor
    divergence: torch.Tensor | None = None
    agrees: torch.Tensor | None = None

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return float(self.losses.double().mean().exp())

    @property
    def error(self) -> float:
        """The perplexity's standard error for the choice of text.

        The mean loss' is taken over blocks of 32 tokens, and carried over by the
        exponential's slope.
        """
        return self.perplexity * block_standard_error(self.losses)

    @property
    def kl(self) -> float:
        """Mean KL divergence to the original, nats a token."""
        return float(self.divergence.double().mean())

    @property
    def agreement(self) -> float:
        """Fraction of tokens where both have the same most likely token."""
        return float(self.agrees.double().mean())

    def __str__(self) -> str:
        places = 2 if self.perplexity < 1000 else 0
        text = (
            f"perplexity {self.perplexity:,.{places}f} (standard error "
            f"{self.error:,.{places}f})"
        )
        if self.divergence is not None:
            text += f", KL {self.kl:.4f} nats, same first choice {self.agreement:.1%}"
        return text


@torch.inference_mode()
def log_probabilities(
    scorer: Scorer, windows: torch.Tensor, batch_size: int = 4
) -> torch.Tensor:
    """ln p of every token, which ``evaluate_perplexity`` compares other models with.

    Args:
        windows: token ids (windows, tokens).

    Returns:
        float32 (windows, tokens − 1, vocabulary), on the CPU: 4 bytes a number, so
        0.2 GB for a thousand tokens of a vocabulary of 49,152.
    """
    parts = [
        F.log_softmax(scorer(batch)[:, :-1].float(), -1).cpu()
        for batch in windows.split(batch_size)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def evaluate_perplexity(
    scorer: Scorer,
    windows: torch.Tensor,
    original: torch.Tensor | None = None,
    batch_size: int = 4,
) -> PerplexityResult:
    """Read windows that don't overlap; every token but a window's first is predicted.

    Args:
        windows: token ids (windows, tokens).
        original: ``log_probabilities`` of the model to compare with.

    Raises:
        EvaluationError: a model that answers with NaN.
    """
    losses, divergence, agrees = [], [], []
    for i, batch in enumerate(windows.split(batch_size)):
        ours = F.log_softmax(scorer(batch)[:, :-1].float(), -1)  # (batch, t − 1, vocab)
        wanted = batch[:, 1:, None].to(ours.device)
        losses.append(-ours.gather(-1, wanted).flatten().cpu())
        if original is not None:
            part = original[i * batch_size :][: len(batch)].to(ours.device)
            terms = part.exp() * (part - ours)
            kl = terms.masked_fill(part == -torch.inf, 0.0).sum(-1)
            divergence.append(kl.flatten().cpu())
            agrees.append((part.argmax(-1) == ours.argmax(-1)).flatten().cpu())
    found = torch.cat(losses)
    if not torch.isfinite(found).all():
        raise EvaluationError("The model answered with NaN or infinity.")
    if original is None:
        return PerplexityResult(found)
    return PerplexityResult(found, torch.cat(divergence), torch.cat(agrees))


def block_standard_error(losses: torch.Tensor) -> float:
    """Of a mean over tokens that follow each other, from means of blocks of them."""
    if len(losses) < 2 * _BLOCK:
        raise EvaluationError(f"{len(losses)} tokens are too few: read at least 64.")
    means = block_means(losses, _BLOCK)
    return float(means.std() / len(means) ** 0.5)


def compare_kl(a: PerplexityResult, b: PerplexityResult) -> Difference:
    """b's mean KL divergence minus a's, on the same tokens, in thousandths of a nat.

    The interval holds the choice of text: blocks of 32 neighbouring tokens are the
    items.
    """
    means = [
        block_means(result.divergence, _BLOCK).numpy() for result in (a, b)
    ]  # each (blocks,)
    return compare(*means, scale=1000, unit="thousandths of a nat")


def block_means(values: torch.Tensor, block: int) -> torch.Tensor:
    """Float64 means over blocks of neighbouring tokens; those left over are dropped."""
    return values[: len(values) // block * block].double().view(-1, block).mean(1)


def perplexity_ratio(a: PerplexityResult, b: PerplexityResult) -> tuple[float, float]:
    """a's perplexity over b's on the same tokens, and its standard error.

    Much sharper than two perplexities with an error each: hard text is hard for both.
    """
    assert a.losses.shape == b.losses.shape, "the two are of other windows"
    difference = a.losses - b.losses
    ratio = float(difference.double().mean().exp())
    return ratio, ratio * block_standard_error(difference)


@torch.inference_mode()
def last_words(
    scorer: Scorer, tokenizer, passages: Sequence, batch_size: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Whether a model guesses the last word of each passage, once and in five guesses.

    The whole word counts: every one of its tokens, given those before it, must be the
    likeliest (what greedy decoding would give), or among the five likeliest.

    Args:
        passages: with ``context`` and ``word`` (see ``data.prose``).

    Returns:
        Two arrays of 0 and 1, (passages,).

    Raises:
        DataError: a passage whose word shares a token with what is before it.
    """
    rows = [_split(tokenizer, passage) for passage in passages]
    first, five = np.zeros(len(rows)), np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(order), batch_size):
        own = order[start : start + batch_size]
        # filled up on the right: nothing before it sees that
        ids = pad_sequence([torch.tensor(rows[i][0]) for i in own], batch_first=True)
        logits = scorer(ids)
        for line, i in enumerate(own):
            whole, known = rows[i]
            there = logits[line, known - 1 : len(whole) - 1]  # (word's tokens, vocab)
            wanted = torch.tensor(whole[known:], device=there.device)[:, None]
            best = there.topk(5).indices == wanted
            first[i], five[i] = best[:, 0].all(), best.any(1).all()
    return first, five


def _split(tokenizer, passage) -> tuple[list[int], int]:
    """A passage's tokens, and how many of them stand before its last word."""
    before = tokenizer(passage.context, add_special_tokens=False)["input_ids"]
    text = f"{passage.context} {passage.word}"
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not before or whole[: len(before)] != before or len(whole) == len(before):
        raise DataError(f"The word can't be told from its context: {text[-60:]!r}.")
    return whole, len(before)
