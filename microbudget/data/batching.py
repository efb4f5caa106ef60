"""Which examples form which batch, in which order, on which process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from ..core.errors import MicrobudgetError

_POOL = 8  # batches sorted together: more would leave less to chance, and learn worse


def epoch_order(n: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of ``n`` examples in an epoch: the same in every process."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    return torch.randperm(n, generator=generator)


def epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


@dataclass(frozen=True)
class Part:
    """A process's share of a global batch, or one accumulation part of it."""

    rows: list[int]
    weight: float  # so that the mean over processes of the sum is the batch's mean
    last: bool


def plan(
    n: int,
    batch_size: int,
    accumulate: int,
    seed: int,
    epoch: int,
    processes: int = 1,
    rank: int = 0,
    lengths: Sequence[int] | None = None,
) -> list[Part]:
    """What one process computes in one epoch; every process knows the whole order.

    Every global batch is dealt out to the processes and cut into ``accumulate`` parts.
    Weighted by ``Part.weight`` and averaged over processes, the parts' mean losses are
    the batch's mean loss, however uneven the shares.

    Args:
        lengths: of every example; neighbours in length then share a batch, so that
            little of it is padding.
    """
    order = epoch_order(n, seed, epoch)
    whole = order.split(batch_size)
    if lengths is not None:
        whole = _bucketed(order, torch.as_tensor(lengths), batch_size, seed, epoch)
    parts = []
    for batch in whole:
        share = batch[rank::processes]
        if len(share) == 0:  # fewer examples than processes: take part, weigh nothing
            parts.append(Part(batch[:1].tolist(), 0.0, True))
            continue
        cuts = [cut for cut in share.tensor_split(accumulate) if len(cut)]
        for i, cut in enumerate(cuts):
            weight = len(cut) * processes / len(batch)
            parts.append(Part(cut.tolist(), weight, i == len(cuts) - 1))
    return parts


def _bucketed(order, lengths, batch_size, seed, epoch) -> list[torch.Tensor]:
    """Batches of similar length, in random order: sorted within pools of a few."""
    batches = []
    for pool in order.split(_POOL * batch_size):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    return [batches[i] for i in epoch_order(len(batches), seed + 1, epoch).tolist()]


class Rows(Dataset):
    """Rows of several tensors; a whole batch is one indexing operation."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0]) if self.tensors else 0

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, ...]:
        index = torch.tensor(rows)  # once: torch would turn the list for each tensor
        return tuple(tensor[index] for tensor in self.tensors)


def loader(data: Dataset, batches: list[list[int]], workers: int) -> DataLoader:
    own = (
        (lambda rows: rows)
        if isinstance(data, Rows)
        else getattr(data, "collate", None)
    )
    return DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=own)


def padded(rows: Sequence[Sequence[int]], filler: int) -> tuple[torch.Tensor, ...]:
    """Rows of numbers and their mask, int64 (rows, longest), filled up on the right."""
    longest = max(map(len, rows))
    sizes = torch.tensor([len(row) for row in rows])
    filled = [[*row, *[filler] * (longest - len(row))] for row in rows]
    return torch.tensor(filled), (torch.arange(longest) < sizes[:, None]).long()


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor, dim: int | None = None
) -> torch.Tensor:
    """Mean of the values whose mask is true; what padding holds, NaN too, has no effect.

    Args:
        values: float (…), or (…, d) for one mean a column.
        mask: (…), True or 1 where a token counts, False or 0 where it is padding.
        dim: the dimension of ``mask`` to average over; default: all of them.
    """
    mask = mask.bool()
    if values.ndim > mask.ndim:
        mask = mask.unsqueeze(-1)  # (…, 1)
    # not values * mask: NaN times 0 is NaN, in the gradient as well
    return torch.where(mask, values, 0.0).sum(dim) / mask.sum(dim)


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices that cover ``range(n)`` in order: for evaluation and inference.

    Raises:
        MicrobudgetError: ``size`` below 1.
    """
    if size < 1:
        raise MicrobudgetError(f"batch_size={size}: it must be at least 1.")
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
