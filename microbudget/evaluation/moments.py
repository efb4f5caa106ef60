"""Second moments of what flows through a model's linear layers, batch by batch.

One batch's activations are in memory at a time, and size·size sums for each layer.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from ..core.errors import DataError
from ..core.modules import named_linear_layers, pick


@dataclass
class Moments:
    """Sums over samples x (in,): enough for their mean and second moment.

    Attributes:
        count: samples. total: float64 (in,). square: float64 (in, in), sum of x xᵀ.
    """

    count: int
    total: torch.Tensor
    square: torch.Tensor

    @classmethod
    def zeros(cls, size: int, device: str | torch.device = "cpu") -> "Moments":
        empty = torch.zeros(size, size, dtype=torch.float64, device=device)
        return cls(0, empty[0].clone(), empty)

    def add(self, samples: torch.Tensor) -> "Moments":
        """Take in samples (n, in), of any n.

        Raises:
            DataError: of another size, or not finite.
        """
        if samples.ndim != 2 or samples.shape[1] != len(self.total):
            raise DataError(
                f"Samples of shape {tuple(samples.shape)} for moments of "
                f"{len(self.total)} numbers."
            )
        # a batch's sum in its own precision, batches' sums in float64
        samples = samples.detach().to(self.total.device)
        samples = samples if samples.dtype == torch.float64 else samples.float()
        with torch.autocast(samples.device.type, enabled=False):
            square = samples.T @ samples
        if not torch.isfinite(square).all():
            raise DataError("The samples hold NaN or infinity, or overflow.")
        self.count += len(samples)
        self.total += samples.sum(0, dtype=torch.float64)
        self.square += square
        return self

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.count

    def matrix(self, centred: bool = False, damping: float = 0.0) -> torch.Tensor:
        """E[x xᵀ], or the covariance; plus ``damping`` · its mean diagonal on each.

        Raises:
            DataError: no samples yet.
        """
        if self.count < 1:
            raise DataError("No samples were collected: run some data through first.")
        found = self.square / self.count
        if centred:
            found = found - torch.outer(self.mean, self.mean)
        found = (found + found.T) / 2
        level = damping * found.diagonal().mean().clamp(min=1e-12)
        return found + level * torch.eye(len(found), dtype=torch.float64).to(found)


def collect_moments(
    model: nn.Module,
    batches: Iterable[tuple],
    names: Sequence[str] | None = None,
    *,
    token_mask: Callable[[tuple], torch.Tensor] | None = None,
) -> dict[str, Moments]:
    """Run ``model(*batch)`` over batches and sum up the inputs of its linear layers.

    Args:
        batches: tuples of the model's arguments.
        names: of linear layers; default: all of ``core.modules.named_linear_layers``.
        token_mask: batch -> bool (batch, tokens), which positions are data: without it
            padding is taken for data. Layers with inputs of other shapes take all.

    Returns:
        name -> moments of that layer's inputs.

    Raises:
        DataError: no batches, a layer that no batch reached. MicrobudgetError: a name
            that isn't a linear layer.
    """
    layers = _chosen(model, names)
    found = {
        n: Moments.zeros(m.in_features, m.weight.device) for m, n in layers.items()
    }
    mask: torch.Tensor | None = None

    def add_input(layer: nn.Module, arguments: tuple) -> None:
        found[layers[layer]].add(_rows(arguments[0], mask))

    with ExitStack() as hooks, torch.no_grad():  # leaving it removes the hooks
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(add_input))
        for batch in batches:
            mask = token_mask(batch).bool() if token_mask else None
            model(*batch)
    return _all_reached(found)


def collect_gradients(
    model: nn.Module,
    batches: Iterable[tuple],
    loss: Callable[[nn.Module, tuple], torch.Tensor],
    names: Sequence[str] | None = None,
    *,
    token_mask: Callable[[tuple], torch.Tensor] | None = None,
) -> dict[str, Moments]:
    """Sum up the gradients of a loss for the outputs of linear layers.

    No gradient is left in the parameters, and none has to require one.

    Args:
        loss: (model, batch) -> the *sum* of the examples' losses.
        names, token_mask: and what is raised, as for ``collect_moments``.

    Returns:
        name -> moments of the gradients for that layer's outputs.
    """
    layers = _chosen(model, names)
    found = {
        n: Moments.zeros(m.out_features, m.weight.device) for m, n in layers.items()
    }
    outputs: list[tuple[str, torch.Tensor]] = []

    def keep_output(layer: nn.Module, _, y: torch.Tensor) -> None:
        outputs.append((layers[layer], y if y.requires_grad else y.requires_grad_()))

    with ExitStack() as hooks, torch.enable_grad():
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(keep_output))
        for batch in batches:
            outputs.clear()
            mask = token_mask(batch).bool() if token_mask else None
            total = loss(model, batch)
            tensors = [y for _, y in outputs]
            gradients = torch.autograd.grad(total, tensors, allow_unused=True)
            for (name, _), gradient in zip(outputs, gradients, strict=True):
                if gradient is not None:
                    found[name].add(_rows(gradient, mask))
    return _all_reached(found)


def _chosen(model: nn.Module, names: Sequence[str] | None) -> dict[nn.Linear, str]:
    """The named linear layers, or all of them, with their names."""
    layers = named_linear_layers(model)
    return {pick(layers, name): name for name in names or layers}


def _rows(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(..., size) -> (n, size): of the positions that are data."""
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask.to(x.device)]
    return x.reshape(-1, x.shape[-1])


def _all_reached(found: dict[str, Moments]) -> dict[str, Moments]:
    for name, moments in found.items():
        if not moments.count:
            raise DataError(f"Nothing came to {name}: give batches that reach it.")
    return found
