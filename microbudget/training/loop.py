"""One plain training loop, on Accelerate, for every method of the course.

``fit(model, data, loss, TrainConfig(epochs=…))`` runs unchanged on a laptop, on a GPU,
and under ``accelerate launch`` on several processes, with the same losses: the order of
the examples depends on the seed and the epoch alone, every process takes its share of
each *global* batch, and shares are weighted by their size. The exceptions are
batch-norm statistics and dropout masks, which depend on how a batch is split.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, broadcast_object_list, send_to_device
from torch import nn
from torch.utils.data import Dataset

from ..core import settings
from ..core.errors import TrainingError
from ..core.progress import bar
from ..data.batching import Rows, epoch_seed, global_batches, loader, share

Loss = Callable[[nn.Module, Any], torch.Tensor]
_CHECK_EVERY = 20  # steps between checks for NaN: each one waits for the device


@dataclass
class History:
    """What a run did.

    Attributes:
        losses: mean loss of every global batch, in order.
        epochs: one dict an epoch: its mean loss, and what ``evaluate`` gave.
    """

    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes through the data.
        batch_size: examples per optimizer step, over all processes.
        lr: learning rate.
        weight_decay: AdamW's.
        optimizer: ``parameters -> Optimizer``; it brings its own learning rate and
            weight decay, and the two above are ignored. Default: AdamW.
        schedule: of the learning rate: ``"constant"``, or ``"linear"`` or ``"cosine"``
            decay to zero.
        warmup: the fraction of all steps in which it first grows linearly.
        precision: ``"no"`` (float32) or ``"bf16"`` autocast.
        max_grad_norm: longer gradients are scaled down to this norm.
        lengths: each example's length, so that similar ones share a batch.
        seed: decides the order of the examples and the dropout masks.
        description: the progress bar's label.

    Raises:
        TrainingError: an invalid value.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: str = "constant"
    warmup: float = 0.0
    precision: str = "no"
    max_grad_norm: float | None = None
    lengths: Sequence[int] | None = None
    seed: int = 0
    description: str = "training"

    def __post_init__(self):
        if min(self.epochs, self.batch_size) < 1:
            raise TrainingError(
                "epochs and batch_size must be at least 1, but they are "
                f"{self.epochs} and {self.batch_size}."
            )
        for name, allowed in (
            ("schedule", ("constant", "linear", "cosine")),
            ("precision", ("no", "bf16")),
        ):
            if getattr(self, name) not in allowed:
                raise TrainingError(
                    f"{name}={getattr(self, name)!r}: use one of {', '.join(allowed)}."
                )


def fit(
    model: nn.Module,
    data: Dataset | tuple[torch.Tensor, ...],
    loss: Loss,
    config: TrainConfig,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> History:
    """Train the parameters of ``model`` that require gradients, in place.

    Args:
        data: a map-style data set (its ``collate``, if it has one, makes batches), or
            tensors of equal length (a batch is then a tuple of their rows: fast, no
            copies through Python).
        loss: ``(model, batch) -> scalar``, a *mean* over the batch's examples.
        evaluate: ``model -> {metric: value}``, called in eval mode after each epoch;
            the name ``loss`` is taken by the training loss.

    Returns:
        The run's history. ``model`` is left in eval mode, on the settings' device.

    Raises:
        TrainingError: nothing to train, no data, a loss that is NaN or infinite.
    """
    data = _examples(data)
    accelerator = _accelerator(config.precision)
    model.to(accelerator.device)
    optimizer = _optimizer(model, config)
    steps = config.epochs * math.ceil(len(data) / config.batch_size)
    scheduler = _schedule(optimizer, config, steps)
    history = History()
    with (
        bar(None, config.description, total=steps, unit="step") as progress,
        _wrapped(accelerator, model) as wrapped,
    ):

        def step(own, examples) -> torch.Tensor:
            """Train on a batch, of which this process computes its own share."""
            value = loss(wrapped, send_to_device(examples, accelerator.device))
            # Gradients are averaged over processes; weighted by their size, the
            # shares' mean losses average to the whole batch's mean loss.
            accelerator.backward(value * own.weight)
            if config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(wrapped.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            progress.update(1)
            return accelerator.reduce(value.detach().float() * own.weight, "mean")

        for epoch in range(config.epochs):
            wrapped.train()
            batches = _epoch_batches(data, config, epoch, accelerator)
            # lazily: a batch is trained on when its loss is asked for
            losses = (step(*batch) for batch in batches)
            losses = _read_finite(losses, len(history.losses))
            mean = sum(losses) / len(losses)
            progress.set_postfix(loss=f"{mean:.3f}")
            history.losses += losses
            history.epochs.append({**_metrics(evaluate, model), "loss": mean})
    _share_buffers(accelerator, model)
    model.eval()
    return history


def _examples(data: Dataset | tuple[torch.Tensor, ...]) -> Dataset:
    """The data set; tensors are wrapped as one, each row an example."""
    if isinstance(data, tuple):
        if len({len(tensor) for tensor in data}) > 1:
            sizes = [tuple(tensor.shape) for tensor in data]
            raise TrainingError(f"The tensors have different lengths: {sizes}.")
        data = Rows(data)
    if len(data) == 0:
        raise TrainingError("There are no examples to train on.")
    return data


def _epoch_batches(data, config: TrainConfig, epoch: int, accelerator) -> Iterable:
    """This process's (share, examples) of every batch of an epoch, in order."""
    torch.manual_seed(epoch_seed(config.seed, epoch))  # dropout draws from here on
    whole = global_batches(
        len(data), config.batch_size, config.seed, epoch, config.lengths
    )
    shares = share(whole, accelerator.num_processes, accelerator.process_index)
    return zip(shares, loader(data, [own.rows for own in shares]), strict=True)


def _read_finite(losses: Iterable[torch.Tensor], before: int) -> list[float]:
    """An epoch's losses as numbers; raises at NaN or infinity.

    Reading one waits for the device, so they are read in groups: up to 19 further steps
    are made after the first NaN before it is noticed.

    Args:
        before: steps of earlier epochs.
    """
    numbers: list[float] = []
    losses = iter(losses)
    while group := list(islice(losses, _CHECK_EVERY)):
        for number in torch.stack(group).tolist():
            numbers.append(number)
            if not math.isfinite(number):
                raise TrainingError(
                    f"The loss is {number} at step {before + len(numbers)}. Lower the "
                    "learning rate, set max_grad_norm=1.0, or look for NaN in the data "
                    "or the weights."
                )
    return numbers


@torch.no_grad()
def _metrics(evaluate: Callable | None, model: nn.Module) -> dict[str, float]:
    """What ``evaluate`` gives, the same in every process."""
    if evaluate is None:
        return {}
    model.eval()
    # Each process has seen different examples: its batch-norm statistics differ, and so
    # may its metrics. All compute them, the main process's are used.
    [metrics] = broadcast_object_list([evaluate(model)])
    return metrics


def _accelerator(precision: str) -> Accelerator:
    """An Accelerator for this precision and for the device of the settings."""
    # Accelerate's state is global to the process. It is reset, so that one notebook can
    # train in float32 and in bfloat16; under `accelerate launch` the device that the
    # launcher has given to each process is kept.
    device = settings.device()
    launched = int(os.environ.get("LOCAL_RANK", -1)) != -1
    AcceleratorState._reset_state(reset_partial_state=not launched)
    wanted = {} if launched or device == "cpu" else {"ACCELERATE_TORCH_DEVICE": device}
    with mock.patch.dict(os.environ, wanted):  # as it was, afterwards
        return Accelerator(cpu=device == "cpu", mixed_precision=precision)


@contextmanager
def _wrapped(accelerator: Accelerator, model: nn.Module) -> Iterator[nn.Module]:
    """The model as Accelerate wraps it; unwrapped when the block ends.

    The optimizer isn't wrapped: Accelerate's looks for installed packages at every
    step, which is a fifth of a small head's training time.
    """
    has_own_forward = "forward" in vars(model)
    wrapped = accelerator.prepare(model)
    try:
        yield wrapped
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # undoes autocast
        # Accelerate leaves two attributes on the model: a flag that makes a second
        # prepare() skip autocast, and a bound `forward`, by which the model refers to
        # itself and would stay in memory.
        vars(model).pop("_is_accelerate_prepared", None)
        if not has_own_forward:
            vars(model).pop("forward", None)


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError(
            "Nothing to train: no parameter of the model requires gradients. "
            "Unfreeze some, or give the model a new head."
        )
    if config.optimizer:
        return config.optimizer(parameters)
    return torch.optim.AdamW(
        parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
    )


def _schedule(optimizer, config: TrainConfig, steps: int):
    warmup = round(config.warmup * steps)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _factor(config.schedule, step, steps, warmup)
    )


def _factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """What the learning rate is multiplied by at a step."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if schedule == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress))  # Loshchilov and Hutter 2017, eq. 5


def _share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the main one's buffers, such as batch-norm statistics."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)
