"""Removing attention heads and feed-forward neurons of BERT: a smaller dense network.

A head is a slice of the query, key and value maps and of the columns of attention's
output map; a neuron a row of the feed-forward's first map and a column of its second.
Both go whole, and the rest computes what it would with those columns zero.

Kept parts are dictionaries, layer's number -> boolean (heads,) or (neurons,), ``True``
to keep. Layers that aren't named stay whole.
"""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ..core.errors import MicrobudgetError, TrainingError
from ..training import image_classifier

Kept = Mapping[int, torch.Tensor]


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a ``models.encoder.Classifier``, or of a BERT or RoBERTa.

    Raises:
        TrainingError: it has none.
    """
    found = [m for m in model.modules() if hasattr(m, "intermediate")]
    if not found or not all(hasattr(m, "attention") for m in found):
        raise TrainingError("This model has no layers like BERT's.")
    return found


def shape(model: nn.Module) -> dict[str, list[int]]:
    """Heads and neurons of every layer."""
    own = layers(model)
    size = own[0].attention.self.attention_head_size
    return {
        "heads": [m.attention.self.query.out_features // size for m in own],
        "neurons": [m.intermediate.dense.out_features for m in own],
    }


def mask(model: nn.Module, heads: Kept | None = None, neurons: Kept | None = None):
    """A copy in which the other heads and neurons have no effect; as large as before.

    Raises:
        TrainingError: no such layer, a mask that doesn't fit or keeps nothing.
    """
    heads, neurons = _checked(model, heads, neurons)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for i, layer in enumerate(layers(model)):
            attention = layer.attention.output.dense.weight
            if i in heads:
                attention[:, ~_spread(layer, heads[i]).to(attention.device)] = 0
            if i in neurons:
                weight = layer.output.dense.weight
                weight[:, ~neurons[i].to(weight.device)] = 0
    return model


def remove(model: nn.Module, heads: Kept | None = None, neurons: Kept | None = None):
    """A copy without the other heads and neurons: computes what ``mask``'s does.

    Raises:
        TrainingError: as ``mask``.
    """
    heads, neurons = _checked(model, heads, neurons)
    model = copy.deepcopy(model)
    for i, layer in enumerate(layers(model)):
        if i in heads:
            own, rows = layer.attention.self, _spread(layer, heads[i])
            for linear in (own.query, own.key, own.value):
                _rows(linear, rows)
            _columns(layer.attention.output.dense, rows)
            own.num_attention_heads = int(heads[i].sum())
            own.all_head_size = int(rows.sum())
        if i in neurons:
            _rows(layer.intermediate.dense, neurons[i])
            _columns(layer.output.dense, neurons[i])
    return model


def save(model: nn.Module, path: str | os.PathLike, **card) -> Path:
    """Write a smaller encoder or classifier: its weights, and the shape they need."""
    try:
        return image_classifier.save(model, path, shape=shape(model), **card)
    except TypeError as error:
        raise TrainingError(f"A card holds text, numbers, lists: {error}.") from error


def load(model: nn.Module, path: str | os.PathLike) -> tuple[nn.Module, dict]:
    """A copy of ``model``, cut to the shape that ``save`` wrote, with its weights.

    Args:
        model: the whole architecture, any weights: ``Encoder.classifier(classes)``.

    Returns:
        The smaller model in eval mode, and the card.

    Raises:
        MicrobudgetError: no such file, none of ours, another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise MicrobudgetError(f"There is no model at {path}: save one first.")
    whole = shape(model)
    try:
        with safe_open(path, "pt") as file:
            wanted = json.loads(file.metadata()["card"])["shape"]
        kept = {
            kind: {
                i: torch.arange(most) < int(n)
                for i, (most, n) in enumerate(
                    zip(whole[kind], wanted[kind], strict=True)
                )
            }
            for kind in ("heads", "neurons")
        }
    except Exception as error:  # safetensors and json raise errors of their own
        raise MicrobudgetError(
            f"{path} is no encoder of the same depth, written by "
            f"shrinking_encoder.save ({type(error).__name__}: {error})."
        ) from error
    smaller = remove(model, kept["heads"], kept["neurons"])
    return smaller, image_classifier.load(smaller, path)


def _checked(model: nn.Module, heads: Kept | None, neurons: Kept | None):
    sizes = shape(model)
    for kind, kept in (("heads", heads or {}), ("neurons", neurons or {})):
        for i, keep in kept.items():
            if i not in range(len(sizes[kind])):
                raise TrainingError(
                    f"No layer {i!r}: they are numbered 0 to {len(sizes[kind]) - 1}."
                )
            if keep.dtype != torch.bool or keep.shape != (sizes[kind][i],):
                raise TrainingError(
                    f"Layer {i}: expected a boolean for each of its {sizes[kind][i]} "
                    f"{kind}, got {keep.dtype} {tuple(keep.shape)}."
                )
            if not keep.any():
                raise TrainingError(f"Layer {i} would lose all {kind}: keep one.")
    return heads or {}, neurons or {}


def _spread(layer: nn.Module, heads: torch.Tensor) -> torch.Tensor:
    """A head's boolean for each of its dimensions."""
    return heads.cpu().repeat_interleave(layer.attention.self.attention_head_size)


def _rows(linear: nn.Linear, keep: torch.Tensor) -> None:
    """Keep these outputs of a linear map, in place."""
    keep = keep.to(linear.weight.device)
    for name in ("weight", "bias"):
        old = getattr(linear, name)
        setattr(linear, name, nn.Parameter(old.detach()[keep], old.requires_grad))
    linear.out_features = int(keep.sum())


def _columns(linear: nn.Linear, keep: torch.Tensor) -> None:
    """Keep these inputs of a linear map, in place."""
    old, keep = linear.weight, keep.to(linear.weight.device)
    linear.weight = nn.Parameter(old.detach()[:, keep].clone(), old.requires_grad)
    linear.in_features = int(keep.sum())
