"""One plain training loop, on Accelerate, for every method of the course.

``fit(model, data, loss, TrainConfig(epochs=…))`` runs unchanged on a laptop, on a GPU,
and under ``accelerate launch`` on several processes, with the same losses: the order of
the examples depends on the seed and the epoch alone, every process takes its share of
each *global* batch, and shares are weighted by their size. Two things depend on how a
batch is cut all the same, as everywhere: batch-norm in training mode sees its own part
only, and dropout draws its own masks.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedType,
    broadcast,
    broadcast_object_list,
    send_to_device,
)
from torch import nn
from torch.utils.data import Dataset

from ..core import settings
from ..core.errors import TrainingError
from ..core.progress import bar
from ..core.settings import LOWER_IS_BETTER
from ..data.batching import Rows, epoch_seed, global_batches, loader, share
from . import checkpoints

Loss = Callable[[nn.Module, Any], torch.Tensor]
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_CHECK_EVERY = 20  # steps between checks for NaN: each one waits for the device


@dataclass
class History:
    """What a run did.

    Attributes:
        losses: mean loss of every global batch, in order.
        epochs: one dict an epoch: epoch, loss, lr, seconds, and what ``evaluate`` gave.
        best_epoch: the epoch whose weights the model now has, when one was chosen.
    """

    losses: list[float] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False
    resumed_from_epoch: int = 0

    def curve(self, key: str) -> list[float]:
        """One value an epoch, such as ``curve("loss")``."""
        return [epoch[key] for epoch in self.epochs]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes through the data.
        batch_size: examples per optimizer step, over all processes.
        lr: learning rate.
        weight_decay: of the built-in optimizers.
        optimizer: ``"adamw"``, ``"sgd"`` (momentum 0.9), or ``parameters -> Optimizer``
            (``lr`` and ``weight_decay`` are then its own business).
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"`` (to zero), after
            ``warmup`` (a fraction of all steps) of linear growth.
        accumulate: parts a batch is computed in: less memory, the same numbers.
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"`` (GPU) autocast.
        max_grad_norm: longer gradients are scaled down to this norm.
        lengths: of every example, to batch those of similar length.
        monitor: a metric of ``evaluate``, or ``"loss"``; the best epoch's weights are
            put back at the end, and training stops after ``patience`` epochs without
            improvement. Loss, wer, perplexity and latency are better when lower.
        seed: of the order of the examples and of dropout.
        description: of the progress bar.

    Raises:
        TrainingError: a value that can't be.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: str | Callable[[list[nn.Parameter]], torch.optim.Optimizer] = "adamw"
    schedule: str = "constant"
    warmup: float = 0.0
    accumulate: int = 1
    precision: str = "no"
    max_grad_norm: float | None = None
    lengths: Sequence[int] | None = None
    monitor: str | None = None
    patience: int | None = None
    seed: int = 0
    description: str = "training"

    def __post_init__(self):
        if min(self.epochs, self.batch_size, self.accumulate) < 1:
            raise TrainingError(
                "epochs, batch_size and accumulate must be at least 1, but they are "
                f"{self.epochs}, {self.batch_size} and {self.accumulate}."
            )
        choices = {"schedule": ("constant", "linear", "cosine"),
                   "precision": ("no", "bf16", "fp16")}  # fmt: skip
        if not callable(self.optimizer):
            choices["optimizer"] = ("adamw", "sgd")
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise TrainingError(
                    f"{name}={getattr(self, name)!r}: use one of {', '.join(allowed)}."
                )
        if self.patience is not None and self.monitor is None:
            raise TrainingError("patience needs monitor: a metric that shall improve.")


@dataclass
class Run:
    """All that training changes, and so all that a checkpoint has to hold.

    Attributes:
        best: score and weights of the best epoch so far, when one is looked for.
        epochs_since_best: how many epochs have gone by without improvement.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    history: History = field(default_factory=History)
    best: dict | None = None
    epochs_since_best: int = 0


def fit(
    model: nn.Module,
    data: Dataset | tuple[torch.Tensor, ...],
    loss: Loss,
    config: TrainConfig,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
) -> History:
    """Train the parameters of ``model`` that require gradients, in place.

    Args:
        data: a map-style data set (its ``collate``, if it has one, makes batches), or
            tensors of equal length (a batch is then a tuple of their rows: fast, no
            copies through Python).
        loss: ``(model, batch) -> scalar``, a *mean* over the batch's examples.
        evaluate: ``model -> {metric: value}``, called in eval mode after each epoch.
        checkpoint: a file, written atomically after each epoch; when it exists the run
            goes on from it, with the losses an uninterrupted one would have had.

    Returns:
        The run's history, and the trained model in eval mode.

    Raises:
        TrainingError: nothing to train, no data, a loss that is NaN or infinite, a
            checkpoint of another run.
    """
    data = Rows(data) if isinstance(data, tuple) else data
    _require_examples(data, config)
    accelerator = _accelerator(config.precision)
    model.to(accelerator.device)
    steps = config.epochs * math.ceil(len(data) / config.batch_size)
    optimizer = _optimizer(model, config)
    run = Run(model, optimizer, _schedule(optimizer, config, steps))
    run_id = checkpoints.fingerprint(model, data, optimizer, config)
    if checkpoint and Path(checkpoint).exists():
        checkpoints.load(checkpoint, run, run_id)
    history = run.history
    progress = bar(None, config.description, total=steps, unit="step")
    progress.update(len(history.losses))
    with closing(progress), _prepared(accelerator, run) as wrapped:
        for epoch in range(len(history.epochs), config.epochs):
            if history.stopped_early:
                break
            started = time.perf_counter()
            work = _epoch_batches(data, config, epoch, accelerator)
            losses = _train_epoch(accelerator, wrapped, run, loss, work, config)
            losses = _finite(losses, len(history.losses), progress)
            row = {"epoch": epoch + 1, "loss": sum(losses) / len(losses),
                   "lr": run.scheduler.get_last_lr()[0]}  # fmt: skip
            if evaluate:
                row = _evaluate(evaluate, model, row)
            row["seconds"] = time.perf_counter() - started
            history.losses += losses
            history.epochs.append(row)
            progress.set_postfix(loss=f"{row['loss']:.3f}")
            if config.monitor:
                _remember_best(run, row, config, accelerator)
            if checkpoint and accelerator.is_main_process:
                checkpoints.save(checkpoint, run, run_id)
    _share_buffers(accelerator, model)
    if run.best:
        model.load_state_dict(run.best["model"])
    model.eval()
    return history


def _epoch_batches(data, config: TrainConfig, epoch: int, accelerator) -> Iterable:
    """This process's (part, examples) of every batch of an epoch, in order."""
    # Dropout draws from here on, in a resumed run the same as in an uninterrupted one.
    torch.manual_seed(epoch_seed(config.seed, epoch))
    whole = global_batches(
        len(data), config.batch_size, config.seed, epoch, config.lengths
    )
    parts = share(
        whole, config.accumulate, accelerator.num_processes, accelerator.process_index
    )
    return zip(parts, loader(data, [part.rows for part in parts]), strict=True)


def _train_epoch(
    accelerator: Accelerator, wrapped: nn.Module, run: Run, loss: Loss, work: Iterable,
    config: TrainConfig,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Train on an epoch's batches; after each one yield its loss."""
    wrapped.train()
    batch_loss = 0.0
    for part, examples in work:
        examples = send_to_device(examples, accelerator.device)
        # Several processes exchange their gradients in backward(). That is needed once
        # a batch, with its last part; before, gradients are added up locally.
        with nullcontext() if part.last else accelerator.no_sync(wrapped):
            value = loss(wrapped, examples)
            accelerator.backward(value * part.weight)
        batch_loss = batch_loss + value.detach().float() * part.weight
        if not part.last:
            continue
        if config.max_grad_norm is not None:
            accelerator.clip_grad_norm_(wrapped.parameters(), config.max_grad_norm)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.scheduler.step()
        yield accelerator.reduce(batch_loss, "mean")
        batch_loss = 0.0


def _finite(values: Iterable[torch.Tensor], before: int, progress) -> list[float]:
    """Read the losses off the device as they come; stop at one that isn't finite.

    Args:
        before: how many steps the run has made before these.
    """
    losses, unread = [], []

    def read() -> None:
        for value in torch.stack(unread).tolist():
            losses.append(value)
            if not math.isfinite(value):
                raise TrainingError(
                    f"The loss is {value} at step {before + len(losses)}. Lower the "
                    "learning rate, set max_grad_norm=1.0, or look for NaN in the data "
                    "or the weights."
                )
        unread.clear()

    for value in values:
        unread.append(value)
        progress.update(1)
        if len(unread) == _CHECK_EVERY:
            read()
    if unread:
        read()
    return losses


@torch.no_grad()
def _evaluate(evaluate: Callable, model: nn.Module, row: dict) -> dict:
    """The epoch's row with the metrics of ``evaluate``, the same in every process."""
    model.eval()
    # Each process has seen other examples: its batch-norm statistics differ, and so may
    # its metrics. Those of the main process decide about the best epoch and stopping.
    [row] = broadcast_object_list([row | evaluate(model)])
    return row


def _remember_best(run: Run, row: dict, config: TrainConfig, accelerator) -> None:
    """Keep the weights of an epoch that is the best so far; count those that aren't."""
    score = _score(row, config.monitor)
    if run.best is None or score > run.best["score"]:
        _share_buffers(accelerator, run.model)
        state = run.model.state_dict()
        weights = {name: tensor.cpu().clone() for name, tensor in state.items()}
        run.best, run.epochs_since_best = {"score": score, "model": weights}, 0
        run.history.best_epoch = row["epoch"]
    else:
        run.epochs_since_best += 1
    if config.patience is not None:
        run.history.stopped_early = run.epochs_since_best >= config.patience


def _score(row: dict, monitor: str) -> float:
    """The monitored metric, turned so that higher is better."""
    if monitor not in row:
        raise TrainingError(
            f"monitor={monitor!r} is not among the epoch's metrics: {sorted(row)}."
        )
    value = float(row[monitor])
    if not math.isfinite(value):
        raise TrainingError(f"{monitor} is {value} in epoch {row['epoch']}.")
    return -value if monitor in LOWER_IS_BETTER else value


def _accelerator(precision: str) -> Accelerator:
    """An Accelerator for this precision and for the device of the settings."""
    # Accelerate keeps both for as long as a process lives, but one notebook trains in
    # float32 and in bfloat16: its state is forgotten first. Only the device stays under
    # `accelerate launch`, whose launcher has given each process its own.
    device = settings.device()
    launched = int(os.environ.get("LOCAL_RANK", -1)) != -1
    AcceleratorState._reset_state(reset_partial_state=not launched)
    if not launched and device != "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    try:
        return Accelerator(cpu=device == "cpu", mixed_precision=precision)
    finally:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)


@contextmanager
def _prepared(accelerator: Accelerator, run: Run) -> Iterator[nn.Module]:
    """The model as Accelerate wraps it; when the block ends it is unwrapped again."""
    model, has_own_forward = run.model, "forward" in vars(run.model)
    wrapped, optimizer = accelerator.prepare(model, run.optimizer)
    # Accelerate's optimizer looks for installed packages at every step: a fifth of a
    # small head's training time. Only a gradient scaler (fp16) and back ends that
    # distribute the optimizer itself need it; otherwise the plain one is used.
    if accelerator.scaler is not None or accelerator.distributed_type not in _PLAIN:
        run.optimizer = optimizer
    try:
        yield wrapped
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # undoes autocast
        # Accelerate leaves two attributes on the model: a mark, because of which it
        # would not put autocast around the model a second time, and a bound `forward`,
        # a reference of the model to itself that would keep it in memory.
        vars(model).pop("_is_accelerate_prepared", None)
        if not has_own_forward:
            vars(model).pop("forward", None)


def _share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the main one's batch-norm statistics."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError(
            "Nothing to train: no parameter of the model requires gradients. "
            "Unfreeze some, or give the model a new head."
        )
    if callable(config.optimizer):
        return config.optimizer(parameters)
    options = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)


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


def _require_examples(data: Dataset, config: TrainConfig) -> None:
    if len(data) == 0:
        raise TrainingError("There are no examples to train on.")
    if config.lengths is not None and len(config.lengths) != len(data):
        raise TrainingError(f"{len(config.lengths)} lengths for {len(data)} examples.")
    if isinstance(data, Rows) and len({len(t) for t in data.tensors}) > 1:
        sizes = [tuple(t.shape) for t in data.tensors]
        raise TrainingError(f"The tensors have different lengths: {sizes}.")
