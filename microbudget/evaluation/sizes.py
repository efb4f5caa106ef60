"""Size means bytes on disk; parameters are counted; bits per weight follow."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import EvaluationError


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


def bits_per_weight(size: int, weights: int) -> float:
    """Bits on disk per weight of the whole model, embeddings included.

    Args:
        size: bytes on disk.
        weights: all parameters of the model.
    """
    if weights < 1:
        raise EvaluationError("A model without weights has no bits per weight.")
    return 8 * size / weights
