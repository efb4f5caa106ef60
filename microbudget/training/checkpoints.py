"""A training run on disk: written whole, read without executing anything."""

import hashlib
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from ..core.errors import TrainingError
from ..core.files import atomic_path
from ..data.batching import Rows

# Settings that two runs needn't share: `accumulate` changes how a batch is computed,
# not what comes out. The optimizer may be a function: its class and its own settings
# are compared instead.
_FREE = ("accumulate", "description", "optimizer")


def save(path: str | Path, run, run_id: str) -> None:
    """Write the whole state of a ``loop.Run``, atomically."""
    state = {
        "run_id": run_id,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "history": asdict(run.history),
        "best": run.best,
        "epochs_since_best": run.epochs_since_best,
    }
    with atomic_path(path, TrainingError) as temporary:
        torch.save(state, temporary)


def load(path: str | Path, run, run_id: str) -> None:
    """Put a run back into the state in which it was saved.

    Raises:
        TrainingError: the file is unreadable or belongs to another run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle raise their own kinds
        raise TrainingError(
            f"{path} is not a readable checkpoint ({type(error).__name__}). Delete it "
            "to start anew."
        ) from error
    if not isinstance(state, dict) or state.get("run_id") != run_id:
        raise TrainingError(
            f"{path} was written by another run (other data, model or settings). "
            "Delete it to start anew, or give this run another file."
        )
    for name in ("model", "optimizer", "scheduler"):
        getattr(run, name).load_state_dict(state[name])
    for name, value in state["history"].items():
        setattr(run.history, name, value)
    run.history.resumed_from_epoch = len(run.history.epochs)
    run.best, run.epochs_since_best = state["best"], state["epochs_since_best"]


def fingerprint(model: nn.Module, data: Dataset, optimizer, config) -> str:
    """What two runs must share for one to go on from the other's checkpoint."""
    names = [f.name for f in fields(config) if f.name not in (*_FREE, "lengths")]
    parts = [(name, getattr(config, name)) for name in names]
    parts += [None if config.lengths is None else list(map(int, config.lengths))]
    parts += [type(optimizer).__name__, len(data)]
    for group in optimizer.param_groups:
        parts += [sorted((k, v) for k, v in group.items() if k != "params")]
    if isinstance(data, Rows):  # a sum notices other data, in milliseconds
        parts += [(tuple(t.shape), t.double().sum().item()) for t in data.tensors]
    parts += [(n, tuple(p.shape), p.requires_grad) for n, p in model.named_parameters()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
