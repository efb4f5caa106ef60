"""One plain training loop, on Accelerate, for every method of the course.

``fit(model, data, loss, epochs=…)`` runs unchanged on a laptop, on a GPU, and under
``accelerate launch`` on several processes, with the same losses: the order of the
examples depends on the seed and the epoch alone, every process takes its share of
each *global* batch, and shares are weighted by their size. Two things depend on how a
batch is cut all the same, as everywhere: batch-norm in training mode sees its own part
only, and dropout draws its own masks.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
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
from ..data.batching import Rows, epoch_seed, loader, plan
from . import checkpoints

Loss = Callable[[nn.Module, Any], torch.Tensor]
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_CHECK_EVERY = 20  # steps between looks for NaN: each look waits for the device


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
        workers: DataLoader processes, for data sets that decode files.
        description: of the progress bar.
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
    workers: int = 0
    description: str = "training"


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
    parameters = [p for p in model.parameters() if p.requires_grad]
    data = Rows(data) if isinstance(data, tuple) else data
    _require(parameters, data, config)
    if config.patience is not None and config.monitor is None:
        raise TrainingError(
            "patience needs config.monitor: a metric that shall improve."
        )
    steps_per_epoch = math.ceil(len(data) / config.batch_size)
    total = steps_per_epoch * config.epochs

    accelerator = _accelerator(config.precision)
    unwrapped = model.to(accelerator.device)
    own_forward = "forward" in vars(unwrapped)
    optim = _optimizer(config.optimizer, parameters, config.lr, config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optim,
        lambda step: _factor(
            config.schedule, step, total, round(config.warmup * total)
        ),
    )
    history, best, since_best = History(), None, 0
    run_id = checkpoints.fingerprint(unwrapped, data, optim, config)
    if checkpoint and Path(checkpoint).exists():
        rest = checkpoints.load(checkpoint, run_id, unwrapped, optim, scheduler)
        history = History(**rest["history"])
        best, since_best = rest["best"], rest["since_best"]
        history.resumed_from_epoch = len(history.epochs)
    model, wrapped = accelerator.prepare(unwrapped, optim)
    # The wrapper asks the disk for packages at every step, a fifth of a small head's
    # time. Only a gradient scaler (fp16) and what shares the config.optimizer out need it.
    if accelerator.scaler is not None or accelerator.distributed_type not in _PLAIN:
        optim = wrapped
    watched = bar(None, config.description, total=total, unit="step")
    watched.update(len(history.losses))
    try:
        for epoch in range(len(history.epochs), config.epochs):
            if history.stopped_early:
                break
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(config.seed, epoch))  # dropout, on resume too
            parts = plan(
                len(data), config.batch_size, config.accumulate, config.seed, epoch,
                accelerator.num_processes, accelerator.process_index, config.lengths,
            )  # fmt: skip
            work = zip(
                parts,
                loader(data, [p.rows for p in parts], config.workers),
                strict=True,
            )
            values = _train_epoch(
                accelerator, model, optim, scheduler, loss, work, config.max_grad_norm,
                watched, len(history.losses),
            )  # fmt: skip
            history.losses += values
            row = {
                "epoch": epoch + 1,
                "loss": sum(values) / len(values),
                "lr": scheduler.get_last_lr()[0],
            }
            if evaluate:
                model.eval()
                with torch.no_grad():
                    row |= evaluate(unwrapped)
                # each process has its own batch-norm statistics: one must decide
                [row] = broadcast_object_list([row])
            row["seconds"] = time.perf_counter() - started
            history.epochs.append(row)
            watched.set_postfix(loss=f"{row['loss']:.3f}")
            if config.monitor:
                score = _score(row, config.monitor)
                if best is None or score > best["score"]:
                    _share_buffers(accelerator, unwrapped)
                    best = {"score": score, "model": _copy_state(unwrapped)}
                    history.best_epoch, since_best = epoch + 1, 0
                else:
                    since_best += 1
                history.stopped_early = (
                    config.patience is not None and since_best >= config.patience
                )
            if checkpoint and accelerator.is_main_process:
                rest = {"history": asdict(history), "best": best}
                rest["since_best"] = since_best
                checkpoints.save(checkpoint, run_id, unwrapped, optim, scheduler, rest)
    finally:
        watched.close()
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # undoes autocast
        # Accelerate leaves a bound method, which would keep the model alive, and a mark
        # that would keep it from putting autocast around the model again
        for left in ("_is_accelerate_prepared",) + ("forward",) * (not own_forward):
            vars(unwrapped).pop(left, None)
    _share_buffers(accelerator, unwrapped)
    if best:
        unwrapped.load_state_dict(best["model"])
    unwrapped.eval()
    return history


def _train_epoch(
    accelerator, model, optim, scheduler, loss, work, max_grad_norm, watched, before
) -> list[float]:
    """One pass over ``work``, pairs of a part and its examples: the batches' losses."""
    model.train()
    losses, running = [], 0.0
    for part, examples in work:
        examples = send_to_device(examples, accelerator.device)
        # gradients are exchanged between processes with a batch's last part only
        with nullcontext() if part.last else accelerator.no_sync(model):
            value = loss(model, examples)
            accelerator.backward(value * part.weight)
        running = running + value.detach().float() * part.weight
        if not part.last:
            continue
        if max_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
        optim.step()
        optim.zero_grad(set_to_none=True)
        scheduler.step()
        losses.append(accelerator.reduce(running, "mean"))
        running = 0.0
        watched.update(1)
        if len(losses) % _CHECK_EVERY == 0:
            _require_finite(losses[-_CHECK_EVERY:], before + len(losses) - _CHECK_EVERY)
    return _require_finite(losses, before)


def _accelerator(precision: str) -> Accelerator:
    """Accelerate keeps precision and device for a process; the course changes both.

    Under ``accelerate launch`` the launcher has chosen the device, and it stays.
    """
    device = settings.device()
    launched = int(os.environ.get("LOCAL_RANK", -1)) != -1
    AcceleratorState._reset_state(reset_partial_state=not launched)
    if not launched and device != "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    try:
        return Accelerator(cpu=device == "cpu", mixed_precision=precision)
    finally:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)


def _share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the main one's batch-norm statistics."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def _optimizer(kind, parameters, lr, weight_decay) -> torch.optim.Optimizer:
    if callable(kind):
        return kind(parameters)
    if kind == "adamw":
        return torch.optim.AdamW(
            parameters, lr=lr, weight_decay=weight_decay, fused=True
        )
    if kind == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=0.9, weight_decay=weight_decay
        )
    raise TrainingError(f"optimizer={kind!r}: use 'adamw', 'sgd' or a function.")


def _factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """What the learning rate is multiplied by at a step."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress))  # Loshchilov and Hutter 2017, eq. 5


def _require(parameters, data, config: TrainConfig) -> None:
    if not parameters:
        raise TrainingError(
            "Nothing to train: no parameter of the model requires gradients. "
            "Unfreeze some, or give the model a new head."
        )
    if len(data) == 0:
        raise TrainingError("There are no examples to train on.")
    if config.lengths is not None and len(config.lengths) != len(data):
        raise TrainingError(f"{len(config.lengths)} lengths for {len(data)} examples.")
    if isinstance(data, Rows) and len({len(t) for t in data.tensors}) > 1:
        sizes = [tuple(t.shape) for t in data.tensors]
        raise TrainingError(f"The tensors have different lengths: {sizes}.")
    if min(config.epochs, config.batch_size, config.accumulate) < 1:
        raise TrainingError(
            "epochs, config.batch_size and config.accumulate must be at least 1."
        )
    if config.schedule not in ("constant", "linear", "cosine"):
        raise TrainingError(
            f"schedule={config.schedule!r}: use constant, linear or cosine."
        )
    if config.precision not in ("no", "bf16", "fp16"):
        raise TrainingError(
            f"precision={config.precision!r}: use 'no', 'bf16' or 'fp16'."
        )
    if config.precision == "fp16" and settings.device() == "cpu":
        raise TrainingError("precision='fp16' needs a GPU: use 'bf16' or 'no' here.")


def _require_finite(losses: list[torch.Tensor], before: int) -> list[float]:
    values = torch.stack(losses).tolist()
    for step, value in enumerate(values):
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss is {value} at step {before + step + 1}. Lower the learning "
                "rate, set max_grad_norm=1.0, or look for NaN in the data or weights."
            )
    return values


def _score(row: dict, monitor: str) -> float:
    if monitor not in row:
        raise TrainingError(
            f"monitor={monitor!r} is not among the epoch's metrics: {sorted(row)}."
        )
    value = float(row[monitor])
    if not math.isfinite(value):
        raise TrainingError(f"{monitor} is {value} in epoch {row['epoch']}.")
    return -value if monitor in LOWER_IS_BETTER else value


def _copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
