"""A language adapter without labels: the same states for the same sentence.

After Pfeiffer et al. 2020, MAD-X (arXiv:2005.00052). They train it by masked-language
modelling; an encoder without such a head is trained on sentences in both languages.
"""

import math
from collections.abc import Callable, Sequence
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
from .methods import BottleneckConfig, apply_


@dataclass
class Parallel(Dataset):
    """Sentences in two languages, tokenised.

    Attributes:
        rows: token ids of a sentence in the one language and in the other.
        pad: the token that fills a batch up.
    """

    rows: list[tuple[list[int], list[int]]]
    pad: int

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
    to how much the old ones vary.

    Args:
        model: a classifier; afterwards the new adapter alone is active and trainable,
            as after ``apply_``, however the training ends.
        texts: in the language the model knows. translate: into the other.

    Raises:
        DataError: no text is short enough. TrainingError: the name is taken.
    """
    data, epochs = _parallel_data(tokenizer, texts, translate, config)
    lengths = [len(translated) for _, translated in data.rows]
    finetune = FinetuneConfig(
        config.lr, epochs, config.batch_size, seed=config.seed, description=config.name
    )
    torch.manual_seed(config.seed)
    apply_(model, BottleneckConfig(config.width), config.name, with_head=False)

    def distance_to_plain(model, batch) -> torch.Tensor:
        plain, plain_mask, other, other_mask = batch
        with autocast():
            with torch.no_grad():
                bottleneck.activate_(model, [])
                targets = upper_means(model, plain, plain_mask)
            bottleneck.activate_(model, [config.name])
            found = upper_means(model, other, other_mask)
        return sum(map(relative_distance, targets, found)) / len(targets)

    try:
        return fit(
            model, data, distance_to_plain, finetune.for_fit(model, lengths, 0.03)
        )
    finally:  # a failure or an interrupt may come while no adapter is active
        bottleneck.activate_(model, [config.name])


def _parallel_data(
    tokenizer, texts, translate, config: LanguageAdapterConfig
) -> tuple[Parallel, int]:
    """The sentences in both languages, and how many epochs make so many steps."""
    wanted = config.steps * config.batch_size
    # more than will be needed, for some are too long; but not all of a large set
    texts = list(texts[: 2 * wanted])
    plain, other = (
        tokenizer(side, return_attention_mask=False)["input_ids"] if side else []
        for side in (texts, list(map(translate, texts)))
    )
    rows = [
        pair
        for pair in zip(plain, other, strict=True)
        if max(map(len, pair)) <= config.max_tokens
    ]
    if not rows:
        raise DataError(
            f"None of {len(texts)} sentences has at most {config.max_tokens} tokens in "
            "both languages: raise max_tokens."
        )
    epochs = math.ceil(wanted / len(rows))
    return Parallel(rows[: math.ceil(wanted / epochs)], tokenizer.pad_token_id), epochs


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
