"""A model's folder in transformers' layout: whole, readable, with finite weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..core.errors import AssetError, MicrobudgetError
from .download import sha256_of

_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def require_files(folder: Path, kind: str, files: Iterable[str] = _FILES) -> None:
    """Raise an AssetError unless all files of a model are there."""
    if (folder / "model.safetensors.index.json").is_file():
        raise AssetError(
            f"{folder} holds its weights in several pieces. Join them: load it with "
            "transformers' AutoModel….from_pretrained, then save_pretrained("
            "NEW_FOLDER, max_shard_size='100GB'), and use the new folder."
        )
    if (folder / "config.json").is_file() and '"auto_map"' in (
        folder / "config.json"
    ).read_text(encoding="utf-8", errors="replace"):
        raise AssetError(
            f"{folder} is a model with Python code of its own, which is never run here."
        )
    for file in files:
        if not (folder / file).is_file():
            raise AssetError(
                f"{folder} holds no {file}: it is no {kind} folder. Copy the whole "
                "folder of a fetched model there."
            )


@contextmanager
def clear_load_errors(folder: Path) -> Iterator[None]:
    """Turn what safetensors, json and transformers raise into one clear AssetError."""
    try:
        yield
    except MicrobudgetError:
        raise
    except Exception as error:
        raise AssetError(
            f"{folder.name} can't be loaded ({type(error).__name__}: {error}). Delete "
            "the folder and fetch it again."
        ) from error


def require_finite(model: nn.Module, name: str) -> None:
    """Raise an AssetError if a weight is NaN or infinite; packed ones can't be."""
    for path, weight in model.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise AssetError(f"{name}: {path} holds numbers that are not finite.")


def weights_id(folder: Path) -> str:
    """Twelve digits of the weights' sha256."""
    return sha256_of(folder / "model.safetensors")[:12]
