"""Factorized models on disk: weights and ranks in one safetensors file."""

import copy
import os
from pathlib import Path

from torch import nn

from ..core.checkpoint import load_model, save_tensors
from ..core.modules import pick, replace_layer
from .layers import LowRank


def save(model: nn.Module, path: str | os.PathLike, **metadata) -> Path:
    """Write all weights and buffers, and which layers are factorized, and how.

    Raises:
        MicrobudgetError: as ``core.checkpoint.save_tensors``.
    """
    modules = model.named_modules()
    kinds = {name: m.kind for name, m in modules if isinstance(m, LowRank)}
    return save_tensors(path, model.state_dict(), kinds=kinds, **metadata)


def load(path: str | os.PathLike, model: nn.Module) -> nn.Module:
    """The factorized model that ``save`` wrote, as ``core.checkpoint.load_model``.

    Args:
        model: of the architecture as it was before it was factorized.
    """
    return load_model(path, model, _factorize)


def _factorize(model: nn.Module, tensors: dict, metadata: dict) -> nn.Module:
    model = copy.deepcopy(model)
    layers = dict(model.named_modules())
    for name, kind in metadata.pop("kinds").items():
        rank, bias = len(tensors[f"{name}.0.weight"]), f"{name}.1.bias" in tensors
        replace_layer(model, name, LowRank(pick(layers, name), rank, kind, bias))
    return model
