"""Training and evaluating a sentence classifier, whatever part of it is trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..core import settings
from ..core.errors import TrainingError
from ..core.precision import autocast, of_training
from ..data.batching import batches
from ..evaluation.metrics import accuracy
from ..models import bitsandbytes as four_bit
from .loop import History, TrainConfig, fit


@dataclass(frozen=True)
class FinetuneConfig:
    """How a transformer is fine-tuned: AdamW, linear decay after a short warm-up.

    Attributes:
        lr: learning rate.
        description: of the progress bar.
    """

    lr: float
    epochs: int = 3
    batch_size: int = 16
    seed: int = 0
    description: str = "fine-tuning"

    def for_fit(self, model: nn.Module, lengths, warmup: float = 0.1) -> TrainConfig:
        """The same for ``training.fit``, for a model and a data set's lengths."""
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=optimizer(model, self.lr),
            schedule="linear",
            warmup=warmup,
            precision=of_training(),
            max_grad_norm=1.0,
            lengths=lengths,
            seed=self.seed,
            description=self.description,
        )


def train(model: nn.Module, sentences, config: FinetuneConfig) -> History:
    """Train the parameters of a classifier that require gradients, in place.

    Args:
        sentences: a ``data.text.Sentences``, or any set of (ids, mask, label) batches
            with ``lengths``.

    Raises:
        TrainingError: as ``training.fit``; a label that the head has no class for.
    """
    classes = model.heads[model.task].out_features
    lowest, highest = int(sentences.labels.min()), int(sentences.labels.max())
    if lowest < 0 or highest >= classes:
        raise TrainingError(
            f"Labels run from {lowest} to {highest}, but the head {model.task!r} has "
            f"{classes} classes: 0 to {classes - 1} are allowed."
        )
    four_bit.keep_trainable_(model)

    def loss(module, batch):
        ids, mask, labels = batch
        return F.cross_entropy(module(ids, mask).float(), labels)

    return fit(model, sentences, loss, config.for_fit(model, sentences.lengths))


def predict(
    model: nn.Module, sentences, batch_size: int = 32, precision: str = "auto"
) -> torch.Tensor:
    """Logits (sentences, classes) in the sentences' order, computed by length."""
    return _by_length(model, model, sentences, batch_size, precision)


def embed(model: nn.Module, sentences, precision: str = "auto") -> torch.Tensor:
    """The encoder's vectors (sentences, d) that a head would get, in their order."""
    return _by_length(model, model.embed, sentences, 32, precision)


@torch.inference_mode()
def _by_length(
    model: nn.Module, function: Callable, sentences, batch_size: int, precision: str
) -> torch.Tensor:
    """``function(ids, mask)`` of all sentences; those of like length share a batch."""
    model.eval()
    device = next(model.parameters()).device
    order = torch.tensor(sentences.lengths).argsort(stable=True)
    found = []
    with autocast(precision):
        for rows in batches(len(order), batch_size):
            ids, mask, _ = sentences.collate(
                [sentences[i] for i in order[rows].tolist()]
            )
            found.append(function(ids.to(device), mask.to(device)).float().cpu())
    return torch.cat(found)[order.argsort()]


def score(model: nn.Module, sentences) -> float:
    """Accuracy of ``predict``."""
    return accuracy(sentences.labels, predict(model, sentences).argmax(1))


def optimizer(model: nn.Module, lr: float) -> Callable:
    """AdamW; for four-bit models on a GPU the paged one (QLoRA, section 3)."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if four_bit.is_four_bit(model) and settings.device().startswith("cuda"):
            import bitsandbytes

            paged = bitsandbytes.optim.PagedAdamW32bit
            return paged(parameters, lr=lr, weight_decay=0.0)
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)

    return make
