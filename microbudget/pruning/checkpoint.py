"""Saving and loading pruned networks: the weights' shapes say what was removed."""

import os
from pathlib import Path

import torch
from torch import nn

from ..core.checkpoint import load_model, save_tensors
from ..models.bert import Classifier
from ..models.vision import fold_batchnorm
from .bert import encoder_layers, remove_heads_and_neurons
from .mobilenet import hidden_channels, remove_channels


def save(model: nn.Module, path: str | os.PathLike, **metadata) -> Path:
    """Write a MobileNetV2, or a sentence classifier on BERT, pruned or whole.

    A MobileNetV2 is written as it is deployed: its batch-norms are folded.

    Raises:
        MicrobudgetError: as ``core.checkpoint.save_tensors``.
    """
    if not isinstance(model, Classifier):
        model = fold_batchnorm(model)
    return save_tensors(path, model.state_dict(), **metadata)


def load(path: str | os.PathLike, model: nn.Module) -> nn.Module:
    """The network that ``save`` wrote, as ``core.checkpoint.load_model``.

    Args:
        model: of the architecture as it was before anything was removed.
    """
    return load_model(path, model, _remove)


def _remove(model: nn.Module, tensors: dict, metadata: dict) -> nn.Module:
    """Keep the first of each: any others would give the same shapes."""
    if isinstance(model, Classifier):
        heads, neurons = {}, {}
        for i, layer in enumerate(encoder_layers(model)):
            name, attention = f"encoder.encoder.layer.{i}", layer.attention.self
            width = len(tensors[f"{name}.attention.self.query.bias"])
            count = width // attention.attention_head_size
            heads[i] = torch.arange(attention.num_attention_heads) < count
            count = len(tensors[f"{name}.intermediate.dense.bias"])
            neurons[i] = torch.arange(layer.intermediate.dense.out_features) < count
        return remove_heads_and_neurons(model, heads, neurons)
    model, kept = fold_batchnorm(model), {}
    for name, width in hidden_channels(model).items():
        projection = tensors.get(f"{name}.conv.2.weight")  # none where it is bypassed
        count = 0 if projection is None else projection.shape[1]
        kept[name] = torch.arange(width) < count
    return remove_channels(model, kept)
