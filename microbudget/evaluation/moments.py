"""Second moments of what flows through a model's linear maps, batch by batch.

One batch's activations are in memory at a time, and size·size sums for each map.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..core.errors import DataError
from ..core.modules import pick, plain_linear_layers


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
        self._require()
        return self.total / self.count

    def matrix(self, centred: bool = False, damping: float = 0.0) -> torch.Tensor:
        """E[x xᵀ], or the covariance; plus ``damping`` · its mean diagonal on each.

        Raises:
            DataError: no samples yet.
        """
        self._require()
        found = self.square / self.count
        if centred:
            found = found - torch.outer(self.mean, self.mean)
        found = (found + found.T) / 2
        level = damping * found.diagonal().mean().clamp(min=0)
        return found + level * torch.eye(len(found), dtype=torch.float64).to(found)

    def _require(self) -> None:
        if self.count < 1:
            raise DataError("No samples were collected: run some data through first.")


def collect_moments(
    model: nn.Module,
    batches: Iterable[tuple],
    names: Sequence[str] | None = None,
    *,
    counts: Callable[[tuple], torch.Tensor] | None = None,
) -> dict[str, Moments]:
    """Run ``model(*batch)`` over batches and sum up what comes into its linear maps.

    Args:
        batches: tuples of the model's arguments.
        names: of linear maps; default: all of ``core.modules.plain_linear_layers``.
        counts: batch -> bool (batch, tokens), which positions count: without it
            padding is taken for data. Maps with inputs of other shapes take all.

    Returns:
        name -> moments of that map's inputs.

    Raises:
        DataError: no batches, a map that no batch reached. MicrobudgetError: a name
            that isn't a linear map.
    """
    maps, found = _empty(model, names, side=1)
    wanted: list[torch.Tensor | None] = [None]

    def hook(moments: Moments):
        def note(_, arguments):
            moments.add(_samples(arguments[0], wanted[0]))

        return note

    hooks = [maps[n].register_forward_pre_hook(hook(m)) for n, m in found.items()]
    with _removed_at_the_end(hooks):
        for batch in batches:
            wanted[0] = counts(batch).bool() if counts else None
            with torch.no_grad():
                model(*batch)
    _require_reached(found)
    return found


def collect_gradients(
    model: nn.Module,
    batches: Iterable[tuple],
    loss: Callable[[nn.Module, tuple], torch.Tensor],
    names: Sequence[str] | None = None,
    *,
    counts: Callable[[tuple], torch.Tensor] | None = None,
) -> dict[str, Moments]:
    """Sum up the gradients of a loss for what linear maps put out.

    No gradient is left in the parameters, and none has to require one.

    Args:
        loss: (model, batch) -> the *sum* of the examples' losses.
        names, counts: as for ``collect_moments``.

    Returns:
        name -> moments of the gradients for that map's outputs.

    Raises:
        DataError: no batches, a map that no batch reached. MicrobudgetError: a name
            that isn't a linear map.
    """
    maps, found = _empty(model, names, side=0)
    outputs: list[tuple[str, torch.Tensor]] = []

    def hook(name: str):
        def note(_, __, y):
            outputs.append((name, y if y.requires_grad else y.requires_grad_()))

        return note

    hooks = [maps[name].register_forward_hook(hook(name)) for name in found]
    with _removed_at_the_end(hooks):
        for batch in batches:
            outputs.clear()
            keep = counts(batch).bool() if counts else None
            with torch.enable_grad():
                total = loss(model, batch)
            tensors = [y for _, y in outputs]
            pairs = torch.autograd.grad(total, tensors, allow_unused=True)
            for (name, _), gradient in zip(outputs, pairs, strict=True):
                if gradient is not None:
                    found[name].add(_samples(gradient, keep))
    _require_reached(found)
    return found


@contextmanager
def _removed_at_the_end(hooks: Sequence) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _empty(model, names, side: int) -> tuple[dict, dict[str, Moments]]:
    """All linear maps, and moments for the named ones' outputs (0) or inputs (1)."""
    maps = plain_linear_layers(model)
    weights = {name: pick(maps, name).weight for name in names or maps}
    return maps, {n: Moments.zeros(w.shape[side], w.device) for n, w in weights.items()}


def _samples(x: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """(..., size) -> (n, size): of those positions that count."""
    if keep is not None and x.shape[:-1] == keep.shape:
        return x[keep.to(x.device)]
    return x.reshape(-1, x.shape[-1])


def _require_reached(found: Mapping[str, Moments]) -> None:
    for name, moments in found.items():
        if not moments.count:
            raise DataError(f"Nothing came to {name}: give batches that reach it.")
