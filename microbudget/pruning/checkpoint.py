"""Saving and loading pruned networks: their weights, and the shape that they need."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from torch import nn
from torchvision.models import MobileNetV2

from ..core.checkpoint import load_tensors, save_tensors
from ..core.errors import MicrobudgetError
from ..models.bert import Classifier
from ..models.mobilenet import SamePadConv2d, mobilenet_v2, use_same_padding_
from ..models.vision import fold_batchnorm
from .bert import heads_and_neurons, remove_heads_and_neurons
from .mobilenet import hidden_channels, remove_channels


def save(model: nn.Module, path: str | os.PathLike, **metadata) -> Path:
    """Write a MobileNetV2, or a sentence classifier on BERT, pruned or whole.

    Args:
        metadata: plain text, numbers, lists and dicts, kept beside the weights.

    Raises:
        MicrobudgetError: weights that are NaN, metadata that JSON can't hold.
    """
    describe = _mobilenet if isinstance(model, MobileNetV2) else _classifier
    return save_tensors(path, model.state_dict(), shape=describe(model), **metadata)


def load(path: str | os.PathLike) -> nn.Module:
    """Build the network that ``save`` wrote, in eval mode.

    Raises:
        MicrobudgetError: no such file, damaged, or not written by ``save``.
    """
    tensors, metadata = load_tensors(path)
    if "shape" not in metadata:
        raise MicrobudgetError(f"{path} wasn't written by mb.pruning.save.")
    shape = metadata["shape"]
    build = _build_mobilenet if "hidden" in shape else _build_classifier
    model = build(**shape)
    model.load_state_dict(tensors)
    return model.eval()


def _mobilenet(model: MobileNetV2) -> dict:
    modules = list(model.modules())
    eps = [module.eps for module in modules if isinstance(module, nn.BatchNorm2d)]
    return {
        "hidden": hidden_channels(model),
        "classes": model.classifier[1].out_features,
        "same_padding": any(isinstance(m, SamePadConv2d) for m in modules),
        "eps": eps[0] if eps else None,  # of batch-norm; None where it is folded
    }


def _build_mobilenet(
    hidden: dict, classes: int, same_padding: bool, eps: float | None
) -> nn.Module:
    model = mobilenet_v2(classes, pretrained=False)
    model = remove_channels(model, _first(hidden, hidden_channels(model)))
    if same_padding:
        use_same_padding_(model)
    if eps is None:
        return fold_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    return model


def _classifier(model: Classifier) -> dict:
    return {
        "config": model.encoder.config.to_diff_dict(),
        "base_id": model.base_id,
        "classes": {task: head.out_features for task, head in model.heads.items()},
        "task": model.task,
        "parts": heads_and_neurons(model),
    }


def _build_classifier(
    config: dict, base_id: str, classes: dict, task: str, parts: dict
) -> nn.Module:
    config = transformers.AutoConfig.for_model(**config)
    encoder = transformers.AutoModel.from_config(
        config, add_pooling_layer=False, attn_implementation="eager"
    )
    model = Classifier(encoder, base_id)
    for name, count in classes.items():
        model.add_head(name, count)
    model.task, whole = task, heads_and_neurons(model)
    heads, neurons = (
        _first(dict(enumerate(parts[kind])), dict(enumerate(whole[kind])))
        for kind in ("heads", "neurons")
    )
    return remove_heads_and_neurons(model, heads, neurons)


def _first(widths: Mapping, whole: Mapping) -> dict:
    """Masks that keep the first ``widths`` of the ``whole``: any will do for shapes."""
    return {name: torch.arange(whole[name]) < widths[name] for name in whole}
