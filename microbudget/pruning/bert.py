"""Removing attention heads and feed-forward neurons of BERT: a smaller dense network.

A head is a slice of the query, key and value layers and of the columns of attention's
output layer; a neuron a row of the feed-forward's first layer and a column of its
second. Removed as a whole, the rest computes what it would with those columns zero.

Kept heads and neurons are dictionaries, layer's number -> boolean (heads,) or
(neurons,), ``True`` to keep. Layers that aren't named stay whole.
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from .dense import check_kept, keep_inputs_, keep_outputs_

Kept = Mapping[int, torch.Tensor]
ALL: Kept = MappingProxyType({})  # no layer is named: they all stay whole


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a ``models.bert.Classifier``, or of a BERT or RoBERTa."""
    return [m for m in model.modules() if hasattr(m, "intermediate")]


def heads_and_neurons(model: nn.Module) -> dict[str, list[int]]:
    """How many ``"heads"`` and ``"neurons"`` every layer has."""
    layers = encoder_layers(model)
    return {
        "heads": [layer.attention.self.num_attention_heads for layer in layers],
        "neurons": [layer.intermediate.dense.out_features for layer in layers],
    }


def mask_heads_and_neurons(
    model: nn.Module, heads: Kept = ALL, neurons: Kept = ALL
) -> nn.Module:
    """A copy in which the other heads and neurons have no effect; as large as before.

    Raises:
        TrainingError: no such layer, a mask that doesn't fit or keeps nothing.
    """
    model, layers = _checked_copy(model, heads, neurons)
    for i, kept in heads.items():
        weight = layers[i].attention.output.dense.weight.data  # (width, heads·size)
        weight[:, ~_dimensions(layers[i], kept).to(weight.device)] = 0
    for i, kept in neurons.items():
        weight = layers[i].output.dense.weight.data  # (width, neurons)
        weight[:, ~kept.to(weight.device)] = 0
    return model


def remove_heads_and_neurons(
    model: nn.Module, heads: Kept = ALL, neurons: Kept = ALL
) -> nn.Module:
    """A smaller copy without the other heads and neurons.

    It computes what ``mask_heads_and_neurons``' does.

    Raises:
        TrainingError: as ``mask_heads_and_neurons``.
    """
    model, layers = _checked_copy(model, heads, neurons)
    for i, kept in heads.items():
        attention, dimensions = layers[i].attention.self, _dimensions(layers[i], kept)
        for linear in (attention.query, attention.key, attention.value):
            keep_outputs_(linear, dimensions)
        keep_inputs_(layers[i].attention.output.dense, dimensions)
        attention.num_attention_heads = int(kept.sum())
        attention.all_head_size = int(dimensions.sum())
    for i, kept in neurons.items():
        keep_outputs_(layers[i].intermediate.dense, kept)
        keep_inputs_(layers[i].output.dense, kept)
    return model


def _checked_copy(
    model: nn.Module, heads: Kept, neurons: Kept
) -> tuple[nn.Module, list[nn.Module]]:
    counts = heads_and_neurons(model)
    check_kept(heads, dict(enumerate(counts["heads"])))
    check_kept(neurons, dict(enumerate(counts["neurons"])))
    model = copy.deepcopy(model)
    return model, encoder_layers(model)


def _dimensions(layer: nn.Module, heads: torch.Tensor) -> torch.Tensor:
    """Every head's boolean, repeated for each of the head's dimensions."""
    return heads.cpu().repeat_interleave(layer.attention.self.attention_head_size)
