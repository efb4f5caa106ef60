"""Removing attention heads and feed-forward neurons of BERT: a smaller dense network.

A head is a slice of the query, key and value layers and of the columns of attention's
output layer; a neuron a row of the feed-forward's first layer and a column of its
second. Removed as a whole, the rest computes what it would with those columns zero.

Kept heads and neurons are dictionaries, layer's number -> boolean (heads,) or
(neurons,), ``True`` to keep. Layers that aren't named stay whole.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from ..core.errors import TrainingError
from .dense import keep_inputs_, keep_outputs_

Kept = Mapping[int, torch.Tensor]


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a ``models.bert.Classifier``, or of a BERT or RoBERTa."""
    return [m for m in model.modules() if hasattr(m, "intermediate")]


def heads_and_neurons(model: nn.Module) -> dict[str, list[int]]:
    """How many ``"heads"`` and ``"neurons"`` every layer has."""
    layers = encoder_layers(model)
    return {
        "heads": [
            m.attention.self.query.out_features // m.attention.self.attention_head_size
            for m in layers
        ],
        "neurons": [m.intermediate.dense.out_features for m in layers],
    }


def mask_heads_and_neurons(
    model: nn.Module, heads: Kept | None = None, neurons: Kept | None = None
) -> nn.Module:
    """A copy in which the other heads and neurons have no effect; as large as before.

    Raises:
        TrainingError: no such layer, a mask that doesn't fit or keeps nothing.
    """
    _check(model, heads or {}, neurons or {})
    model = copy.deepcopy(model)
    layers = encoder_layers(model)
    for i, kept in (heads or {}).items():
        weight = layers[i].attention.output.dense.weight.data  # (width, heads·size)
        weight[:, ~_dimensions(layers[i], kept).to(weight.device)] = 0
    for i, kept in (neurons or {}).items():
        weight = layers[i].output.dense.weight.data  # (width, neurons)
        weight[:, ~kept.to(weight.device)] = 0
    return model


def remove_heads_and_neurons(
    model: nn.Module, heads: Kept | None = None, neurons: Kept | None = None
) -> nn.Module:
    """A smaller copy without the other heads and neurons.

    It computes what ``mask_heads_and_neurons``' does.

    Raises:
        TrainingError: as ``mask_heads_and_neurons``.
    """
    _check(model, heads or {}, neurons or {})
    model = copy.deepcopy(model)
    layers = encoder_layers(model)
    for i, kept in (heads or {}).items():
        attention, dimensions = layers[i].attention.self, _dimensions(layers[i], kept)
        for linear in (attention.query, attention.key, attention.value):
            keep_outputs_(linear, dimensions)
        keep_inputs_(layers[i].attention.output.dense, dimensions)
        attention.num_attention_heads = int(kept.sum())
        attention.all_head_size = int(dimensions.sum())
    for i, kept in (neurons or {}).items():
        keep_outputs_(layers[i].intermediate.dense, kept)
        keep_inputs_(layers[i].output.dense, kept)
    return model


def _check(model: nn.Module, heads: Kept, neurons: Kept) -> None:
    for kind, counts in heads_and_neurons(model).items():
        for i, kept in (heads if kind == "heads" else neurons).items():
            if i not in range(len(counts)):
                raise TrainingError(
                    f"No layer {i!r}: they are numbered 0 to {len(counts) - 1}."
                )
            if kept.dtype != torch.bool or kept.shape != (counts[i],):
                raise TrainingError(
                    f"Layer {i}: expected a boolean for each of its {counts[i]} "
                    f"{kind}, got {kept.dtype} {tuple(kept.shape)}."
                )
            if not kept.any():
                raise TrainingError(f"Layer {i} would lose all {kind}: keep one.")


def _dimensions(layer: nn.Module, heads: torch.Tensor) -> torch.Tensor:
    """Every head's boolean, repeated for each of the head's dimensions."""
    return heads.cpu().repeat_interleave(layer.attention.self.attention_head_size)
