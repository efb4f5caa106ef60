"""Tensors and what belongs to them in one safetensors file: the course's one format.

Every chapter's ``save(model, path, **metadata)`` and ``load`` stand on these functions.
Nothing in such a file is executed when it is read.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .errors import MicrobudgetError
from .files import atomic_path

_KEY = "microbudget"  # of the metadata, as JSON


def save_tensors(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], **metadata
) -> Path:
    """Write tensors with metadata, whole or not at all.

    Args:
        tensors: by name; a tensor that several names share is written once.
        metadata: plain text, numbers, lists and dicts.

    Raises:
        MicrobudgetError: a tensor holds NaN or infinity, metadata that JSON can't hold,
            a full disk. What was at ``path`` is then untouched.
    """
    path = Path(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise MicrobudgetError(
                f"{name} holds NaN or infinity, so {path} was not written: the model "
                "has diverged. Train it again with a lower learning rate."
            )
    first_name, aliases = {}, {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in first_name:
            aliases[name] = first_name[place]
        else:
            first_name[place if tensor.numel() else name] = name
    own = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if name not in aliases
    }
    try:
        notes = json.dumps({"aliases": aliases, "metadata": metadata})
    except TypeError as error:
        raise MicrobudgetError(
            f"Metadata must be plain text, numbers, lists or dicts: {error}."
        ) from error
    with atomic_path(path) as temporary:
        save_file(own, temporary, metadata={_KEY: notes})
    return path


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict]:
    """Read what ``save_tensors`` wrote: the tensors by name, and the metadata.

    Raises:
        MicrobudgetError: no such file, damaged, or not written by ``save_tensors``.
    """
    path = Path(path)
    if not path.is_file():
        raise MicrobudgetError(f"There is no file {path}: save a model there first.")
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors |= {name: tensors[of] for name, of in notes["aliases"].items()}
        return tensors, notes["metadata"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MicrobudgetError(
            f"{path} can't be read as a model of this course "
            f"({type(error).__name__}: {reason}). Save it again."
        ) from error


def load_model(
    path: str | os.PathLike, model: nn.Module, rebuild: Callable[..., nn.Module]
) -> nn.Module:
    """A new model with a file's tensors, in eval mode, its ``metadata`` an attribute.

    A file holds no architecture (nothing in it is executed), so every chapter's
    ``load(path, model)`` is given one: the model as it was before it was made smaller.

    Args:
        model: with any weights; it stays as it is.
        rebuild: (model, tensors, metadata) -> a copy with the layers that the file
            describes. It may change both: what is left of the tensors is loaded.

    Raises:
        MicrobudgetError: no such file, not one of ours, of another architecture.
    """
    tensors, metadata = load_tensors(path)
    try:
        new = rebuild(model, tensors, metadata)
        new.load_state_dict(tensors)
    except (MicrobudgetError, RuntimeError, AttributeError, KeyError) as error:
        raise MicrobudgetError(
            f"{path} doesn't fit this {type(model).__name__}: build the architecture "
            "as it was before it was made smaller, with its batch-norms folded if they "
            f"were folded. ({str(error)[:300]})"
        ) from error
    new.metadata = metadata
    return new.eval()
