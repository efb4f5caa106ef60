"""Factorized models on disk: weights and ranks in one safetensors file."""

import copy
import os
from pathlib import Path

from torch import nn

from ..core.checkpoint import load_tensors, save_tensors
from ..core.errors import MicrobudgetError
from ..core.modules import pick, replace_layer
from .layers import LowRank


def save(model: nn.Module, path: str | os.PathLike, **metadata) -> Path:
    """Write all weights and buffers, and which layers have which rank.

    Args:
        metadata: notes of your own (text, numbers, lists).

    Raises:
        MicrobudgetError: a weight that isn't finite, metadata that isn't plain, a full
            disk. The old file is then untouched.
    """
    layers = {
        name: {
            "kind": layer.kind,
            "rank": layer.rank,
            "bias": layer[1].bias is not None,
        }
        for name, layer in model.named_modules()
        if isinstance(layer, LowRank)
    }
    return save_tensors(path, model.state_dict(), layers=layers, notes=metadata)


def load(path: str | os.PathLike, model: nn.Module) -> nn.Module:
    """The factorized model that ``save`` wrote.

    Args:
        model: of the architecture as it was before it was factorized, with any weights;
            it stays as it is.

    Raises:
        MicrobudgetError: no such file, not one of ours, of another architecture.
    """
    tensors, metadata = load_tensors(path)
    model = copy.deepcopy(model)
    try:
        layers = dict(model.named_modules())
        for name, saved in metadata["layers"].items():
            replace_layer(model, name, LowRank(pick(layers, name), **saved))
        model.load_state_dict(tensors)
    except (MicrobudgetError, RuntimeError, AttributeError, KeyError) as error:
        raise MicrobudgetError(
            f"{path} doesn't fit this {type(model).__name__}: build the architecture "
            f"that was factorized, whole. ({' '.join(str(error).split())[:300]})"
        ) from error
    return model
