"""Which heads and neurons of BERT to remove, and how to mend what is left.

By the loss's gradient at their gates, or by how well the other neurons could stand in
for them; then the output maps are fitted anew, layer by layer, in closed form.
``shrinking_encoder`` does the removing.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ..core.errors import TrainingError
from ..evaluation.moments import Moments
from .bert_removal import layers, shape
from .reconstruction import RIDGE, eliminate, solve

Batches = Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def importance(model: nn.Module, batches: Batches) -> dict[str, torch.Tensor]:
    """How much the loss would feel each head and each neuron.

    Michel et al. 2019 (Are sixteen heads really better than one?, equation 2): the mean
    over examples of |∂loss/∂gate|, where a gate of 1 multiplies the part's output; for
    neurons the same. Heads are then scaled to unit length in each layer, as there.

    Args:
        model: a ``models.encoder.Classifier`` whose layers have as many parts each.
        batches: (ids, mask, labels), to be gone through once.

    Returns:
        ``"heads"`` (layers, heads) and ``"neurons"`` (layers, neurons), float32.

    Raises:
        TrainingError: no examples; a loss that is NaN.
    """
    widths, device = shape(model), next(model.parameters()).device
    gates: list[torch.Tensor] = []  # head gates and neuron gates of layer 0, 1, …
    handles = []
    for layer, parts in zip(
        layers(model), zip(*widths.values(), strict=True), strict=True
    ):
        maps = layer.attention.output.dense, layer.output.dense
        for module, count in zip(maps, parts, strict=True):

            def gate(module, inputs, count=count):
                (x,) = inputs  # (batch, tokens, width)
                ones = torch.ones(len(x), 1, count, device=x.device, requires_grad=True)
                gates.append(ones)
                return (x * ones.repeat_interleave(x.shape[-1] // count, 2),)

            handles.append(module.register_forward_pre_hook(gate))
    totals, examples = None, 0
    model.eval()
    try:
        for ids, present, labels in batches:
            gates.clear()
            logits = model(ids.to(device), present.to(device)).float()
            loss = F.cross_entropy(logits, labels.to(device), reduction="sum")
            if not torch.isfinite(loss):
                raise TrainingError(f"The loss is {loss.item()}: look at the model.")
            slopes = torch.autograd.grad(loss, gates)  # each (batch, 1, parts)
            found = [slope.abs().sum((0, 1)).cpu() for slope in slopes]
            totals = (
                [a + b for a, b in zip(totals, found, strict=True)]
                if examples
                else found
            )
            examples += len(labels)
    finally:
        for handle in handles:
            handle.remove()
    if not examples:
        raise TrainingError("There are no examples to judge the parts by.")
    heads, neurons = torch.stack(totals[::2]), torch.stack(totals[1::2])
    return {"heads": F.normalize(heads, dim=1), "neurons": neurons / examples}


def lowest(scores: torch.Tensor, gone: int, least: int = 1) -> dict[int, torch.Tensor]:
    """Keep all but the ``gone`` lowest of all layers, ``least`` a layer at least.

    Raises:
        TrainingError: more would go than may.
    """
    count, width = scores.shape
    if not 0 <= gone <= count * (width - least):
        raise TrainingError(
            f"{gone} of {count * width} can't go: {least} a layer must stay."
        )
    kept = torch.ones(count, width, dtype=torch.bool)
    for index in scores.flatten().argsort(stable=True).tolist():
        row, column = divmod(index, width)
        if gone and kept[row].sum() > least:
            kept[row, column] = False
            gone -= 1
    return dict(enumerate(kept))


@torch.no_grad()
def survey(
    model: nn.Module, batches: Batches, gone: int, group: int = 64
) -> dict[int, torch.Tensor]:
    """Neurons to keep when ``gone`` of each layer leave: those hardest to replace.

    ``reconstruction.eliminate`` on the neurons' activations over some sentences.
    """
    own = layers(model)
    moments = [Moments.zeros(m.intermediate.dense.out_features) for m in own]
    for x, extended, present in _embedded(model, batches):
        for layer, sums in zip(own, moments, strict=True):
            a = layer.attention(x, extended)[0]
            hidden = layer.intermediate(a)
            sums.add(hidden[present])
            x = layer.output(hidden, a)
    kept = {}
    for i, (layer, sums) in enumerate(zip(own, moments, strict=True)):
        weight = layer.output.dense.weight.cpu()
        order, _ = eliminate(sums.matrix(centred=True), weight, group, most=gone)
        kept[i] = torch.ones(len(order), dtype=torch.bool)
        kept[i][order[:gone]] = False
    return kept


@torch.no_grad()
def reconstruct(
    model: nn.Module, smaller: nn.Module, batches: Batches, ridge: float = RIDGE
) -> nn.Module:
    """Mend ``smaller`` in place, layer by layer: its output maps, by least squares.

    From what is left in the smaller network *now* to what the original adds up before
    each layer norm, as ``mending.reconstruct`` does for pictures. Maps that lost no
    inputs stay as they are.

    Raises:
        TrainingError: fewer than two tokens, NaN.
    """
    smaller.eval()
    theirs = list(_embedded(model, batches))
    ours = theirs
    for old, new in zip(layers(model), layers(smaller), strict=True):
        first, second = new.attention.output.dense, new.output.dense
        theirs, sums = _steps(old, theirs)
        if first.in_features < old.attention.output.dense.in_features:
            moments = Moments.zeros(first.in_features + first.out_features)
            for (y, extended, present), (total, _) in zip(ours, sums, strict=True):
                seen = new.attention.self(y, extended)[0]
                moments.add(torch.cat([seen, total - y], -1)[present])
            _fit(first, moments, ridge)
        middle = [new.attention(y, extended)[0] for y, extended, _ in ours]
        if second.in_features < old.output.dense.in_features:
            moments = Moments.zeros(second.in_features + second.out_features)
            rows = zip(middle, sums, ours, strict=True)
            for a, (_, total), (_, _, present) in rows:
                both = torch.cat([new.intermediate(a), total - a], -1)
                moments.add(both[present])
            _fit(second, moments, ridge)
        ours = [
            (new.output(new.intermediate(a), a), extended, present)
            for a, (_, extended, present) in zip(middle, ours, strict=True)
        ]
    return smaller


def _steps(layer: nn.Module, batches: list) -> tuple[list, list]:
    """A layer's outputs, and what it adds up before its first and second norm."""
    outputs, sums = [], []
    for x, extended, present in batches:
        first = layer.attention.output.dense(layer.attention.self(x, extended)[0]) + x
        a = layer.attention.output.LayerNorm(first)
        second = layer.output.dense(layer.intermediate(a)) + a
        outputs.append((layer.output.LayerNorm(second), extended, present))
        sums.append((first, second))
    return outputs, sums


def _fit(linear: nn.Linear, moments: Moments, ridge: float) -> None:
    weight, bias = solve(moments, linear.in_features, ridge, linear.weight)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def _embedded(model: nn.Module, batches: Batches) -> Iterator[tuple[torch.Tensor, ...]]:
    """Word vectors, the mask as attention wants it, and which tokens are real."""
    encoder = getattr(model, "encoder", model)
    encoder = encoder if hasattr(encoder, "embeddings") else model
    encoder.eval()
    device = next(encoder.parameters()).device
    for ids, present, *_ in batches:
        present = present.to(device).bool()
        x = encoder.embeddings(input_ids=ids.to(device))
        extended = torch.zeros(len(x), 1, 1, x.shape[1], device=device)
        extended.masked_fill_(~present[:, None, None], torch.finfo(x.dtype).min)
        yield x, extended, present
