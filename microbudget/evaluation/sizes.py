"""Size means bytes on disk; parameters are counted; bits per weight follow."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import EvaluationError


@dataclass(frozen=True)
class Parameters:
    """How many numbers a model holds and how many of them training may change."""

    total: int
    trainable: int

    def __str__(self) -> str:
        percent = 100 * self.trainable / max(1, self.total)
        return (
            f"{self.total:,} parameters, {self.trainable:,} trainable ({percent:.2f} %)"
        )


def count_parameters(model) -> Parameters:
    """Count a torch module's parameters; shared ones once, buffers not.

    Of weights packed in four bits every weight is counted, not every byte.
    """
    total = trainable = 0
    for parameter in model.parameters():
        packed = getattr(parameter, "quant_state", None)
        total += packed.shape.numel() if packed is not None else parameter.numel()
        trainable += parameter.numel() * parameter.requires_grad
    return Parameters(total, trainable)


def bytes_on_disk(path: str | os.PathLike) -> int:
    """Bytes of a file, or of all files below a folder.

    Raises:
        EvaluationError: there is nothing at ``path``.
    """
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        raise EvaluationError(f"There is nothing at {path}: save the model first.")
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def stored_bytes(model) -> int:
    """Bytes that a torch module takes on disk: its state dictionary, really written.

    For models whose library has a file format of its own, or none. Plain float32
    tensors (embeddings, norms) are written in 16 bits, as checkpoints have them; what a
    library quantized, and its scales, as they are.
    """
    import tempfile

    import torch

    halves = {
        parameter: parameter.detach().half()
        for parameter in model.parameters()  # a shared one once
        if type(parameter.data) is torch.Tensor and parameter.dtype == torch.float32
    }
    state = {
        name: halves.get(value, value.detach())
        for name, value in model.state_dict(keep_vars=True).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "state.pt")
        return bytes_on_disk(folder)


def bits_per_weight(size: int, weights: int) -> float:
    """Of ``size`` bytes on disk, for all weights of a model, embeddings included."""
    return 8 * size / weights
