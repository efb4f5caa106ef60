"""Which heads and neurons of BERT to remove, and refitting what is left.

By the loss's gradient at their gates, or by how well the other neurons can replace
them; then the output layers are refitted, one after the other, in closed form.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..core.errors import TrainingError
from ..evaluation.moments import Moments
from .bert import encoder_layers, heads_and_neurons
from .reconstruction import RIDGE, elimination_order, least_squares

Batches = Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # ids, mask, labels


class Importance(NamedTuple):
    """Scores, float32: of heads (layers, heads), of neurons (layers, neurons)."""

    heads: torch.Tensor
    neurons: torch.Tensor


def gate_importance(model: nn.Module, batches: Batches) -> Importance:
    """How sensitive the loss is to each head and each neuron.

    Michel et al. 2019 (Are sixteen heads really better than one?, equation 2): the mean
    over examples of |∂loss/∂gate|, where a gate of 1 multiplies the output of a head
    or neuron. Heads are then scaled to unit length in each layer, as there.

    Args:
        model: a ``models.bert.Classifier`` whose layers all have the same numbers of
            heads and neurons.
        batches: (ids, mask, labels), read once.

    Raises:
        TrainingError: no examples.
    """
    counts, device = heads_and_neurons(model), next(model.parameters()).device
    gates: list[torch.Tensor] = []  # head gates and neuron gates of layer 0, 1, …
    totals, examples = None, 0
    model.eval()
    with ExitStack() as hooks:
        for layer, n_heads, n_neurons in zip(
            encoder_layers(model), counts["heads"], counts["neurons"], strict=True
        ):
            for linear, count in (
                (layer.attention.output.dense, n_heads),
                (layer.output.dense, n_neurons),
            ):
                gate = _gate(count, gates)
                hooks.enter_context(linear.register_forward_pre_hook(gate))
        for ids, mask, labels in batches:
            gates.clear()
            logits = model(ids.to(device), mask.to(device)).float()
            loss = F.cross_entropy(logits, labels.to(device), reduction="sum")
            gradients = torch.autograd.grad(loss, gates)  # each (batch, 1, count)
            sums = [gradient.abs().sum((0, 1)).cpu() for gradient in gradients]
            totals = sums if totals is None else [*map(torch.add, totals, sums)]
            examples += len(labels)
    if not examples:
        raise TrainingError("There are no examples to measure the importance on.")
    heads, neurons = torch.stack(totals[::2]), torch.stack(totals[1::2])
    return Importance(F.normalize(heads, dim=1), neurons / examples)


def keep_most_important(scores: torch.Tensor, removed: int) -> dict[int, torch.Tensor]:
    """Keep all but the ``removed`` lowest of all layers; every layer keeps one.

    Args:
        scores: (layers, heads or neurons).

    Returns:
        layer -> boolean, ``True`` to keep.
    """
    layers, width = scores.shape
    if not 0 <= removed <= layers * (width - 1):
        raise TrainingError(
            f"removed={removed}: of {layers * width}, every layer must keep one."
        )
    kept = torch.ones(layers, width, dtype=torch.bool)
    for index in scores.flatten().argsort(stable=True).tolist():
        row, column = divmod(index, width)
        if removed and kept[row].sum() > 1:
            kept[row, column] = False
            removed -= 1
    return dict(enumerate(kept))


@torch.no_grad()
def keep_irreplaceable_neurons(
    model: nn.Module, batches: Batches, removed: int, group_size: int = 64
) -> dict[int, torch.Tensor]:
    """Remove ``removed`` neurons of each layer: those that others can replace best.

    ``elimination_order`` on the neurons' activations over some sentences.

    Returns:
        layer -> boolean, ``True`` to keep.
    """
    layers = encoder_layers(model)
    moments = [Moments.zeros(m.intermediate.dense.out_features) for m in layers]
    for x, attention_mask, real in _embedded(model, batches):
        for layer, sums in zip(layers, moments, strict=True):
            attended = layer.attention(x, attention_mask)[0]
            hidden = layer.intermediate(attended)  # (batch, tokens, neurons)
            sums.add(hidden[real])
            x = layer.output(hidden, attended)
    kept = {}
    for i, (layer, sums) in enumerate(zip(layers, moments, strict=True)):
        weight = layer.output.dense.weight.cpu()
        covariance = sums.matrix(centred=True)
        order, _ = elimination_order(covariance, weight, group_size, stop_after=removed)
        kept[i] = torch.ones(len(order), dtype=torch.bool)
        kept[i][order[:removed]] = False
    return kept


@torch.no_grad()
def reconstruct_encoder_(
    model: nn.Module, smaller: nn.Module, batches: Batches, ridge: float = RIDGE
) -> nn.Module:
    """Refit ``smaller``'s output layers in place, one by one, by least squares.

    From what the heads and neurons that are left hold *now* to the sum that the
    original computes before each layer norm, as ``reconstruct_channels_`` does for
    images. Output layers that lost no inputs stay as they are.

    Raises:
        DataError: NaN.
    """
    smaller.eval()
    original = list(_embedded(model, batches))  # what comes into the current layer
    current = original
    for old, new in zip(encoder_layers(model), encoder_layers(smaller), strict=True):
        original, sums = _run_layer(old, original)
        attention_sums, output_sums = zip(*sums, strict=True)
        attended = _refit_(
            new.attention.output, old.attention.output, attention_sums, ridge,
            [(new.attention.self(x, mask)[0], x, real) for x, mask, real in current],
        )  # fmt: skip
        outputs = _refit_(
            new.output, old.output, output_sums, ridge,
            [
                (new.intermediate(x), x, real)
                for x, (_, _, real) in zip(attended, current, strict=True)
            ],
        )  # fmt: skip
        current = [
            (x, mask, real) for x, (_, mask, real) in zip(outputs, current, strict=True)
        ]
    return smaller


def _gate(count: int, gates: list[torch.Tensor]):
    """A hook that multiplies a layer's ``count`` groups of inputs by gates of 1."""

    def gate(module, inputs):
        (x,) = inputs  # (batch, tokens, width)
        ones = torch.ones(len(x), 1, count, device=x.device, requires_grad=True)
        gates.append(ones)
        return (x * ones.repeat_interleave(x.shape[-1] // count, 2),)

    return gate


def _run_layer(layer: nn.Module, batches: list) -> tuple[list, list]:
    """A layer's outputs, and the sums before its first and second layer norm."""
    outputs, sums = [], []
    for x, attention_mask, real in batches:
        context = layer.attention.self(x, attention_mask)[0]
        first = layer.attention.output.dense(context) + x
        attended = layer.attention.output.LayerNorm(first)
        second = layer.output.dense(layer.intermediate(attended)) + attended
        outputs.append((layer.output.LayerNorm(second), attention_mask, real))
        sums.append((first, second))
    return outputs, sums


def _refit_(output, original, targets, ridge: float, inputs: list) -> list:
    """Fit an output layer (dense, residual, layer norm) to the original's sums.

    Args:
        targets: (batch, tokens, width), the original's sum before the layer norm.
        inputs: (hidden, residual, real), batch by batch.

    Returns:
        What the output layer gives then, batch by batch.
    """
    dense = output.dense
    if dense.in_features < original.dense.in_features:
        moments = Moments.zeros(dense.in_features + dense.out_features)
        for (hidden, residual, real), target in zip(inputs, targets, strict=True):
            moments.add(torch.cat([hidden, target - residual], -1)[real])
        weight, bias = least_squares(moments, dense.in_features, ridge, dense.weight)
        dense.weight.copy_(weight)
        dense.bias.copy_(bias)
    return [output(hidden, residual) for hidden, residual, _ in inputs]


def _embedded(model: nn.Module, batches: Batches) -> Iterator[tuple[torch.Tensor, ...]]:
    """Word vectors, the mask as attention wants it, and which tokens are real."""
    encoder = getattr(model, "encoder", model)
    encoder = encoder if hasattr(encoder, "embeddings") else model
    encoder.eval()
    device = next(encoder.parameters()).device
    for ids, mask, *_ in batches:
        real = mask.to(device).bool()  # (batch, tokens)
        x = encoder.embeddings(input_ids=ids.to(device))
        attention_mask = torch.zeros(len(x), 1, 1, x.shape[1], device=device)
        attention_mask.masked_fill_(~real[:, None, None], torch.finfo(x.dtype).min)
        yield x, attention_mask, real
