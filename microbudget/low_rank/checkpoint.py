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
    """Write all weights and buffers, and which layers are factorized, and how.

    Args:
        metadata: plain text, numbers, lists and dicts; ``load`` gives it back.

    Raises:
        MicrobudgetError: a weight that isn't finite, metadata that isn't plain, a full
            disk. The old file is then untouched.
    """
    modules = model.named_modules()
    kinds = {name: m.kind for name, m in modules if isinstance(m, LowRank)}
    return save_tensors(path, model.state_dict(), kinds=kinds, **metadata)


def load(path: str | os.PathLike, model: nn.Module) -> nn.Module:
    """The factorized model that ``save`` wrote, with its ``metadata`` as an attribute.

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
        for name, kind in metadata.pop("kinds").items():
            rank, bias = len(tensors[f"{name}.0.weight"]), f"{name}.1.bias" in tensors
            replace_layer(model, name, LowRank(pick(layers, name), rank, kind, bias))
        model.load_state_dict(tensors)
    except (MicrobudgetError, RuntimeError, AttributeError, KeyError) as error:
        raise MicrobudgetError(
            f"{path} doesn't fit this {type(model).__name__}: build the architecture "
            f"that was factorized, whole. ({str(error)[:300]})"
        ) from error
    model.metadata = metadata
    return model.eval()
