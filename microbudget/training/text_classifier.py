"""Training and judging a sentence classifier, whatever part of it may learn."""

import math
from collections.abc import Callable

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
from .parts import is_four_bit

_OPTIONS = {"evaluate", "monitor", "patience", "accumulate", "checkpoint",
            "max_grad_norm", "description"}  # fmt: skip


def train(
    model: nn.Module,
    sentences,
    *,
    lr: float,
    epochs: int = 3,
    batch_size: int = 16,
    precision: str = "auto",
    seed: int = 0,
    **options,
) -> History:
    """Train what a method has left free: AdamW, linear decay after a short warm-up.

    Args:
        sentences: a ``data.text.Sentences``, or any set of (ids, mask, label) batches
            with ``lengths``.
        precision: ``"auto"``: bfloat16 where that is faster.
        options: evaluate, monitor, patience, accumulate, checkpoint, max_grad_norm and
            description, as ``training.fit`` has them.

    Raises:
        TrainingError: as ``training.fit``; a rate that isn't positive; another option;
            no head, or a label that the head has no class for.
    """
    if strange := set(options) - _OPTIONS:
        raise TrainingError(f"{sorted(strange)}: use some of {sorted(_OPTIONS)}.")
    if not lr > 0:
        raise TrainingError(f"lr={lr}: the learning rate must be positive.")
    if not len(model.heads):
        raise TrainingError("This classifier has no head: add_head(task, classes).")
    classes = model.heads[model.task].out_features
    if int(sentences.labels.max()) >= classes or int(sentences.labels.min()) < 0:
        raise TrainingError(
            f"Labels run from {int(sentences.labels.min())} to "
            f"{int(sentences.labels.max())}, but the head {model.task!r} has {classes} "
            "classes: 0 to the number of classes less one are allowed."
        )

    four_bit.keep_trainable(model)

    def loss(module, batch):
        ids, mask, labels = batch
        return F.cross_entropy(module(ids, mask).float(), labels)

    return fit(
        model,
        sentences,
        loss,
        TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer(model, lr),
            schedule="linear",
            warmup=0.1,
            precision=of_training(precision),
            lengths=sentences.lengths,
            seed=seed,
            **{"max_grad_norm": 1.0, "description": "fine-tuning", **options},
        ),
    )


@torch.inference_mode()
def predict(
    model: nn.Module, sentences, batch_size: int = 32, precision: str = "auto"
) -> torch.Tensor:
    """Logits (sentences, classes) in the sentences' order, computed by length."""
    model.eval()
    device = next(model.parameters()).device
    order = torch.tensor(sentences.lengths).argsort(stable=True)
    found = []
    with autocast(precision):
        for rows in batches(len(order), batch_size):
            ids, mask, _ = sentences.collate(
                [sentences[i] for i in order[rows].tolist()]
            )
            found.append(model(ids.to(device), mask.to(device)).float().cpu())
    return torch.cat(found)[order.argsort()]


def score(model: nn.Module, sentences) -> float:
    """Accuracy of ``predict``."""
    return accuracy(sentences.labels, predict(model, sentences).argmax(1))


def search_lr(
    loss_at: Callable[[float], float],
    start: float = 1e-3,
    factor: float = 10**0.5,
    most: int = 6,
) -> tuple[float, dict[float, float]]:
    """The best learning rate on a grid of powers, found by going downhill.

    From ``start`` upwards while the loss falls; downwards, if the first step up isn't
    better. The same start and steps for every method: no favourites.

    Args:
        loss_at: learning rate -> validation loss; a run that fails counts as infinite.
        most: runs at most, three or more.

    Returns:
        The best rate, and every rate that was tried with its loss.

    Raises:
        TrainingError: every run failed.
    """
    if most < 3:
        raise TrainingError(f"most={most}: a search needs three runs at least.")
    tried: dict[int, float] = {}

    def at(power: int) -> float:
        if power not in tried:
            try:
                tried[power] = loss_at(start * factor**power)
            except TrainingError:  # the loss was NaN: the rate is too high
                tried[power] = math.inf
            if math.isnan(tried[power]):
                tried[power] = math.inf
        return tried[power]

    best, way = 0, 1 if at(1) < at(0) else -1
    while len(tried) < most:
        if at(best + way) >= at(best) < math.inf:
            break
        best += way
    if at(best) == math.inf:
        raise TrainingError(
            f"No rate between {start * factor ** min(tried):.0e} and "
            f"{start * factor ** max(tried):.0e} works: look at the data and the model."
        )
    rates = {start * factor**power: loss for power, loss in sorted(tried.items())}
    return start * factor**best, rates


def optimizer(model: nn.Module, lr: float, weight_decay: float = 0.0) -> Callable:
    """AdamW; for four-bit models on a GPU the paged one (QLoRA, section 3)."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if is_four_bit(model) and settings.device().startswith("cuda"):
            import bitsandbytes

            return bitsandbytes.optim.PagedAdamW32bit(
                parameters, lr=lr, weight_decay=weight_decay
            )
        return torch.optim.AdamW(
            parameters, lr=lr, weight_decay=weight_decay, fused=True
        )

    return make
