"""Saving and loading pruned networks: the weights' shapes say what was removed."""

import os
from pathlib import Path

import torch
import transformers
from torch import nn

from ..core.checkpoint import load_tensors, save_tensors
from ..core.errors import MicrobudgetError
from ..models.bert import Classifier
from ..models.mobilenet import SamePadConv2d, mobilenet_v2, use_same_padding_
from ..models.vision import fold_batchnorm
from .bert import encoder_layers, remove_heads_and_neurons
from .mobilenet import hidden_channels, remove_channels


def save(model: nn.Module, path: str | os.PathLike, **metadata) -> Path:
    """Write a MobileNetV2, or a sentence classifier on BERT, pruned or whole.

    A MobileNetV2 is written as it is deployed: its batch-norms are folded.

    Args:
        metadata: plain text, numbers, lists and dicts, kept beside the weights.

    Raises:
        MicrobudgetError: weights that are NaN, metadata that JSON can't hold.
    """
    if isinstance(model, Classifier):
        build = {
            "config": model.encoder.config.to_diff_dict(),
            "base_id": model.base_id,
            "task": model.task,
        }
    else:
        model = fold_batchnorm(model)
        same_padding = any(isinstance(m, SamePadConv2d) for m in model.modules())
        build = {"same_padding": same_padding}
    return save_tensors(path, model.state_dict(), build=build, **metadata)


def load(path: str | os.PathLike) -> nn.Module:
    """The network that ``save`` wrote, in eval mode, its ``metadata`` an attribute.

    Raises:
        MicrobudgetError: no such file, damaged, or not written by ``save``.
    """
    tensors, metadata = load_tensors(path)
    if "build" not in metadata:
        raise MicrobudgetError(f"{path} wasn't written by mb.pruning.save.")
    options = metadata.pop("build")
    build = _classifier if "config" in options else _mobilenet
    model = build(tensors, **options)
    model.load_state_dict(tensors)
    model.metadata = metadata
    return model.eval()


def _mobilenet(tensors: dict, same_padding: bool) -> nn.Module:
    model = mobilenet_v2(len(tensors["classifier.1.bias"]), pretrained=False)
    if same_padding:
        use_same_padding_(model)
    kept = {}
    for name, width in hidden_channels(model).items():
        projection = tensors.get(f"{name}.conv.2.weight")  # none where it is bypassed
        kept[name] = _first(0 if projection is None else projection.shape[1], width)
    return fold_batchnorm(remove_channels(model, kept))


def _classifier(tensors: dict, config: dict, base_id: str, task: str) -> nn.Module:
    encoder = transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model(**config),
        add_pooling_layer=False,
        attn_implementation="eager",
    )
    model = Classifier(encoder, base_id)
    for name, tensor in tensors.items():
        if name.startswith("heads.") and name.endswith(".bias"):
            model.add_head(name.split(".")[1], len(tensor))
    model.task = task
    heads, neurons = {}, {}
    for i, layer in enumerate(encoder_layers(model)):
        name, attention = f"encoder.encoder.layer.{i}", layer.attention.self
        width = len(tensors[f"{name}.attention.self.query.bias"])
        left = width // attention.attention_head_size
        heads[i] = _first(left, attention.num_attention_heads)
        left = len(tensors[f"{name}.intermediate.dense.bias"])
        neurons[i] = _first(left, layer.intermediate.dense.out_features)
    return remove_heads_and_neurons(model, heads, neurons)


def _first(count: int, width: int) -> torch.Tensor:
    """Keep the first ``count``: any others would give the same shapes."""
    return torch.arange(width) < count
