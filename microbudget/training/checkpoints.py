"""A training run on disk: written whole, read without executing anything."""

import hashlib
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from ..core.errors import TrainingError
from ..core.files import atomic_path
from ..data.batching import Rows


def save(path, run_id: str, model: nn.Module, optimizer, scheduler, rest: dict) -> None:
    """Write model, optimizer, schedule and the loop's own state, atomically."""
    state = {
        "run": run_id,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rest": rest,
    }
    with atomic_path(path, TrainingError) as temporary:
        torch.save(state, temporary)


def load(path, run_id: str, model: nn.Module, optimizer, scheduler) -> dict:
    """Put a run's state back and return what ``save`` was given as ``rest``.

    Raises:
        TrainingError: the file is unreadable or belongs to another run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(
            f"{path} is not a readable checkpoint ({type(error).__name__}). Delete it "
            "to start anew."
        ) from error
    if state.get("run") != run_id:
        raise TrainingError(
            f"{Path(path)} was written by another run (other data, model or settings). "
            "Delete it to start anew, or give this run another file."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return state["rest"]


def fingerprint(model: nn.Module, data: Dataset, optim, config) -> str:
    """What two runs must share for one to go on from the other's checkpoint."""
    keys = ("epochs", "batch_size", "schedule", "warmup", "precision", "seed",
            "max_grad_norm", "monitor", "patience")  # fmt: skip
    parts = [(key, getattr(config, key)) for key in keys] + [
        len(data),
        type(optim).__name__,
    ]
    parts += [(g["lr"], g["weight_decay"]) for g in optim.param_groups]
    if isinstance(data, Rows):  # a sum notices other data, in milliseconds
        parts += [(tuple(t.shape), t.double().sum().item()) for t in data.tensors]
    parts += [(n, tuple(p.shape), p.requires_grad) for n, p in model.named_parameters()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
