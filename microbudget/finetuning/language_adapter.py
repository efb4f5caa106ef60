"""A language adapter without labels: the same states for the same sentence.

After Pfeiffer et al. 2020, MAD-X (arXiv:2005.00052). They train it by masked-language
modelling; an encoder without such a head learns from sentences in both languages.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Dataset

from ..core.errors import DataError
from ..core.precision import autocast
from ..data.batching import masked_mean, padded
from ..training.loop import History, fit
from ..training.text_classifier import FinetuneConfig
from . import bottleneck
from .methods import BottleneckConfig, applied, apply_


class Parallel(Dataset):
    """Sentences in two languages, tokenised; ``lengths`` are those of the second.

    Raises:
        DataError: no pair with at most ``max_tokens`` tokens on either side.
    """

    def __init__(self, tokenizer, pairs: Sequence[tuple[str, str]], max_tokens: int):
        sides = [
            tokenizer(list(side), return_attention_mask=False)["input_ids"]
            for side in zip(*pairs, strict=True)
        ]
        both = zip(*sides, strict=True)
        self.rows = [(a, b) for a, b in both if max(len(a), len(b)) <= max_tokens]
        if not self.rows:
            raise DataError(f"No pair of sentences has at most {max_tokens} tokens.")
        self.pad = tokenizer.pad_token_id

    @property
    def lengths(self) -> list[int]:
        return [len(b) for _, b in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[list[int], list[int]]:
        return self.rows[i]

    def collate(self, rows: list) -> tuple[torch.Tensor, ...]:
        """-> ids and mask (batch, tokens) of the first language, then of the second."""
        first, second = zip(*rows, strict=True)
        return *padded(first, self.pad), *padded(second, self.pad)


@dataclass(frozen=True)
class LanguageAdapterConfig:
    """How a language adapter is made and trained.

    Attributes:
        name: of the adapter. width: of its bottleneck.
        steps: about; the sentences are read several times when there are too few.
        max_tokens: longer sentences are left out: short ones give more steps for the
            same work, and steps are what it takes.
    """

    name: str = "language"
    width: int = 128
    steps: int = 400
    batch_size: int = 8
    lr: float = 3e-3
    max_tokens: int = 24
    seed: int = 0


def train_language_adapter(
    model: nn.Module,
    tokenizer,
    texts: Sequence[str],
    translate: Callable[[str], str],
    config: LanguageAdapterConfig = LanguageAdapterConfig(),
) -> History:
    """Add a language adapter and train it, alone, on unlabelled sentences.

    The loss: from the middle layer on, the squared distance between a sentence's mean
    state in the new language, with the adapter, and in the old one without, relative
    to how much the old ones vary. Save it alone with
    ``finetuning.save(model, path, name)``.

    Args:
        model: a classifier; which of its other adapters are active and what is trained
            are afterwards as they were, also when the training fails: the new adapter
            is then taken out again.
        texts: in the language the model knows. translate: into the other.

    Raises:
        DataError: no text, or none short enough. TrainingError: the name is taken.
    """
    data, epochs = _parallel_data(tokenizer, texts, translate, config)
    finetune = FinetuneConfig(
        config.lr, epochs, config.batch_size, seed=config.seed, description=config.name
    )
    torch.manual_seed(config.seed)
    with _other_adapters_kept(model, config.name):
        apply_(model, BottleneckConfig(config.width), config.name, with_head=False)
        loss = _distance_to_plain(config.name)
        return fit(model, data, loss, finetune.for_fit(model, data.lengths, 0.03))


def _parallel_data(
    tokenizer, texts, translate, config: LanguageAdapterConfig
) -> tuple[Parallel, int]:
    """The sentences in both languages, and how many epochs make so many steps."""
    if not texts:
        raise DataError("There are no sentences to learn the language from.")
    wanted = config.steps * config.batch_size
    # more than will be needed, for some are too long; but not all of a large set
    pairs = [(text, translate(text)) for text in texts[: 2 * wanted]]
    data = Parallel(tokenizer, pairs, config.max_tokens)
    epochs = math.ceil(wanted / len(data))
    data.rows = data.rows[: math.ceil(wanted / epochs)]
    return data, epochs


@contextmanager
def _other_adapters_kept(model: nn.Module, new: str) -> Iterator[None]:
    """Put back what is active and what is trained; after an error, take ``new`` out."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    stack, known = bottleneck.active(model), applied(model)
    active_name = getattr(model, "active_name", "")
    try:
        yield
    except BaseException:  # an interrupt, too
        if new in applied(model) and new not in known:
            bottleneck.remove_(model, new)
            model.applied = known
        raise
    finally:
        bottleneck.activate_(model, stack)
        model.requires_grad_(False)
        for parameter, was_trained in before:
            parameter.requires_grad_(was_trained)
        model.active_name = active_name or (new if new in applied(model) else "")


def _distance_to_plain(name: str) -> Callable:
    """The loss: how far states with the adapter are from the plain language's."""

    def loss(model, batch) -> torch.Tensor:
        plain, plain_mask, other, other_mask = batch
        with autocast():
            with torch.no_grad():
                bottleneck.activate_(model, [])
                targets = upper_means(model, plain, plain_mask)
            bottleneck.activate_(model, [name])
            found = upper_means(model, other, other_mask)
        return sum(map(relative_distance, targets, found)) / len(targets)

    return loss


def upper_means(model: nn.Module, ids, mask) -> list[torch.Tensor]:
    """Mean states (batch, d) after the middle layer and every one above it."""
    found = model.encoder(
        input_ids=ids, attention_mask=mask, output_hidden_states=True
    ).hidden_states  # embeddings and every layer, each (batch, tokens, d)
    upper = found[len(found) // 2 :]
    return [masked_mean(states.float(), mask, 1) for states in upper]


def relative_distance(target: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Mean squared distance over the targets' variance: 1 is as good as their mean."""
    spread = (target - target.mean(0)).square().mean().clamp_min(1e-6)
    return (target - found).square().mean() / spread
