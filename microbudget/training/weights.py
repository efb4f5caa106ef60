"""All weights of a model as one safetensors file."""

import os
from pathlib import Path

from torch import nn

from ..core.checkpoint import load_tensors, save_tensors
from ..core.errors import MicrobudgetError


def save(model: nn.Module, path: str | os.PathLike, **metadata) -> Path:
    """Write a model's weights with metadata (class names, input size …), atomically.

    Raises:
        MicrobudgetError: a weight that isn't finite, metadata that JSON can't hold.
    """
    return save_tensors(path, model.state_dict(), **metadata)


def load_(model: nn.Module, path: str | os.PathLike) -> dict:
    """Fill ``model`` with the weights of ``save``; the model is in eval mode then.

    Returns:
        The metadata.

    Raises:
        MicrobudgetError: no such file, damaged, or of another architecture.
    """
    tensors, metadata = load_tensors(path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise MicrobudgetError(
            f"{path} does not hold this model ({reason}). Build the same architecture "
            "with the same number of classes, or save it again."
        ) from error
    model.eval()
    return metadata
