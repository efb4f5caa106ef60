"""A language adapter without labels: the same states for the same sentence.

After Pfeiffer et al. 2020, MAD-X (arXiv:2005.00052). They train it by masked-language
modelling; an encoder without such a head learns from sentences in both languages.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.data import Dataset

from ..core.errors import DataError
from ..core.precision import autocast, of_training
from ..data.batching import padded
from ..training import adapters
from ..training.loop import History, TrainConfig, fit
from ..training.parts import note, require_room
from ..training.text_classifier import optimizer


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
        # short ones: for the same work more steps, which is what it takes
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


def train_adapter(
    model: nn.Module,
    tokenizer,
    texts: Sequence[str],
    translate: Callable[[str], str],
    *,
    name: str = "language",
    width: int = 128,
    steps: int = 400,
    batch_size: int = 8,
    lr: float = 3e-3,
    max_tokens: int = 24,
    seed: int = 0,
) -> History:
    """Add a language adapter and train it, alone, on unlabelled sentences.

    The loss: from the middle layer on, the squared distance between a sentence's mean
    state in the new language, with the adapter, and in the old one without, relative
    to how much the old ones vary. Save it alone with
    ``finetuning.save(model, path, name)``.

    Args:
        model: a classifier; other adapters that it holds, what is active and what may
            learn are afterwards as they were.
        texts: in the language the model knows. translate: into the other.
        steps: about; the sentences are read several times when there are too few.

    Raises:
        DataError: no text, or none short enough. TrainingError: the name is taken.
    """
    if not texts:
        raise DataError("There are no sentences to learn the language from.")
    # tokenise no more than will be needed
    pairs = [(text, translate(text)) for text in texts[: 2 * steps * batch_size]]
    data = Parallel(tokenizer, pairs, max_tokens)
    epochs = math.ceil(steps * batch_size / len(data))
    data.rows = data.rows[: math.ceil(steps * batch_size / epochs)]
    require_room(model, "bottlenecks", name)
    before = [(p, p.requires_grad) for p in model.parameters()]
    stack, part = adapters.active(model), getattr(model, "part", "")
    torch.manual_seed(seed)
    adapters.add(model, name, width)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(f".adapters.{name}." in path)
    note(model, name, "bottlenecks", {"width": width, "name": name}, head="")

    def loss(_, batch) -> torch.Tensor:
        plain, plain_mask, other, other_mask = batch
        with autocast():
            with torch.no_grad():
                adapters.activate(model, [])
                targets = upper_means(model, plain, plain_mask)
            adapters.activate(model, [name])
            found = upper_means(model, other, other_mask)
        return sum(map(relative_distance, targets, found)) / len(targets)

    history = fit(
        model,
        data,
        loss,
        TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer(model, lr),
            schedule="linear",
            warmup=0.03,
            max_grad_norm=1.0,
            precision=of_training(),
            lengths=data.lengths,
            seed=seed,
            description=name,
        ),
    )
    adapters.activate(model, stack)
    for parameter, learnt in before:
        parameter.requires_grad_(learnt)
    model.part = part or name
    return history


def upper_means(model: nn.Module, ids, mask) -> list[torch.Tensor]:
    """Mean states (batch, d) after the middle layer and every one above it."""
    found = model.encoder(
        input_ids=ids, attention_mask=mask, output_hidden_states=True
    ).hidden_states  # embeddings and every layer, each (batch, tokens, d)
    weights = mask.unsqueeze(-1).float()
    return [
        (states.float() * weights).sum(1) / weights.sum(1)
        for states in found[len(found) // 2 :]
    ]


def relative_distance(target: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Mean squared distance over the targets' variance: 1 is as good as their mean."""
    spread = (target - target.mean(0)).square().mean().clamp_min(1e-6)
    return (target - found).square().mean() / spread
