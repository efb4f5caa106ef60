"""Which heads and neurons of BERT to remove, and refitting what is left.

By the loss's gradient at their gates, or by how well the other neurons can replace
them; then the output layers are refitted, one after the other, in closed form.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..evaluation.moments import Moments, collect_moments
from .bert import encoder_layers, heads_and_neurons
from .reconstruction import elimination_order, refit_

GROUP_SIZE = 64  # neurons that are removed together, before the rest is ranked anew
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
    """
    device = next(model.parameters()).device
    gates: list[torch.Tensor] = []  # head gates and neuron gates of layer 0, 1, …
    sums, examples = [], 0
    by_layer = zip(*heads_and_neurons(model).values(), strict=True)
    counts = [count for both in by_layer for count in both]
    with ExitStack() as hooks:  # leaving it removes them
        for (_, output), count in zip(_halves(model.eval()), counts, strict=True):
            hook = output.dense.register_forward_pre_hook(_gate(count, gates))
            hooks.enter_context(hook)
        for ids, mask, labels in batches:
            gates.clear()
            logits = model(ids.to(device), mask.to(device)).float()
            loss = F.cross_entropy(logits, labels.to(device), reduction="sum")
            gradients = torch.autograd.grad(loss, gates)  # each (batch, 1, count)
            sums.append([gradient.abs().sum((0, 1)).cpu() for gradient in gradients])
            examples += len(labels)
    totals = [sum(batch_sums) for batch_sums in zip(*sums, strict=True)]
    heads, neurons = torch.stack(totals[::2]), torch.stack(totals[1::2])
    return Importance(F.normalize(heads, dim=1), neurons / examples)


def keep_most_important(scores: torch.Tensor, removed: int) -> dict[int, torch.Tensor]:
    """Keep all but the ``removed`` lowest of all layers; every layer keeps one.

    Args:
        scores: (layers, heads or neurons).

    Returns:
        layer -> boolean, ``True`` to keep.
    """
    kept = torch.ones_like(scores, dtype=torch.bool)
    for index in scores.flatten().argsort(stable=True).tolist():
        row, column = divmod(index, scores.shape[1])
        if removed and kept[row].sum() > 1:
            kept[row, column] = False
            removed -= 1
    return dict(enumerate(kept))


def keep_irreplaceable_neurons(
    model: nn.Module, batches: Batches, removed: int
) -> dict[int, torch.Tensor]:
    """Remove ``removed`` neurons of each layer: those that others can replace best.

    ``elimination_order`` on the neurons' activations over some sentences.

    Returns:
        layer -> boolean, ``True`` to keep.
    """
    device = next(model.parameters()).device
    inputs = [(ids.to(device), mask.to(device)) for ids, mask, _ in batches]
    layers = encoder_layers(model)
    names = [f"encoder.encoder.layer.{i}.output.dense" for i in range(len(layers))]
    moments = collect_moments(
        model.eval(), inputs, names, token_mask=lambda batch: batch[1]
    )
    kept = {}
    for i, layer in enumerate(layers):
        weight = layer.output.dense.weight  # (outputs, neurons)
        order, _ = elimination_order(moments[names[i]], weight, GROUP_SIZE)
        kept[i] = torch.ones(len(order), dtype=torch.bool)
        kept[i][order[:removed]] = False
    return kept


@torch.no_grad()
def reconstruct_encoder_(
    model: nn.Module, smaller: nn.Module, batches: Batches
) -> nn.Module:
    """Refit ``smaller``'s output layers in place, one by one, by least squares.

    From what the heads and neurons that are left hold *now* to the sum that the
    original computes before each layer norm, as ``reconstruct_channels_`` does for
    images. Output layers that lost no inputs stay as they are.
    """
    embedded, masks, real = _embed(model.eval(), batches)
    old_inputs, new_inputs = list(embedded), list(embedded)  # (batch, tokens, width)
    for (old_part, old_output), (new_part, new_output) in zip(
        _halves(model), _halves(smaller.eval()), strict=True
    ):
        linear = new_output.dense
        moments = Moments.zeros(linear.in_features + linear.out_features)
        hidden = []
        for i, (old, new) in enumerate(zip(old_inputs, new_inputs, strict=True)):
            target = old_output.dense(old_part(old, masks[i])) + old
            old_inputs[i] = old_output.LayerNorm(target)
            hidden.append(new_part(new, masks[i]))
            moments.add(torch.cat([hidden[i], target - new], -1)[real[i]])
        if linear.in_features < old_output.dense.in_features:
            refit_(linear, moments)
        new_inputs = list(map(new_output, hidden, new_inputs))
    return smaller


def _gate(count: int, gates: list[torch.Tensor]) -> Callable:
    """A hook that multiplies a layer's ``count`` groups of inputs by gates of 1."""

    def gate(module, inputs):
        (x,) = inputs  # (batch, tokens, width)
        ones = torch.ones(len(x), 1, count, device=x.device, requires_grad=True)
        gates.append(ones)
        return (x * ones.repeat_interleave(x.shape[-1] // count, 2),)

    return gate


def _halves(model: nn.Module) -> list[tuple[Callable, nn.Module]]:
    """Attention and feed-forward of each layer: what computes the input of their
    output layer, and that output layer with its residual and layer norm.
    """
    halves = []
    for layer in encoder_layers(model):
        attention = layer.attention.self
        halves += [
            (lambda x, mask, a=attention: a(x, mask)[0], layer.attention.output),
            (lambda x, mask, f=layer.intermediate: f(x), layer.output),
        ]
    return halves


def _embed(model: nn.Module, batches: Batches) -> tuple[list, list, list]:
    """Of each batch: embeddings, attention mask (0 or -∞), which tokens are real."""
    device = next(model.parameters()).device
    embedded, masks, real = [], [], []
    for ids, mask, *_ in batches:
        ids, mask = ids.to(device), mask.to(device).long()  # (batch, tokens)
        real.append(mask.bool())
        embedded.append(model.encoder.embeddings(input_ids=ids))
        masks.append((1 - mask)[:, None, None] * torch.finfo(torch.float32).min)
    return embedded, masks, real
