"""Which examples form which batch, in which order, on which process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from ..core.errors import MicrobudgetError

# Batches that are sorted by length together. With more, batches would be less random,
# and training worse.
_POOL = 8


def pad_token_id(tokenizer) -> int:
    """What fills a batch up; some tokenizers have no token for it, and it is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def epoch_order(n: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of ``n`` examples in an epoch: the same in every process."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    return torch.randperm(n, generator=generator)


def epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


@dataclass(frozen=True)
class Share:
    """What one process computes of a global batch."""

    rows: list[int]
    weight: float  # so that the mean over processes is the batch's mean


def global_batches(
    n: int,
    batch_size: int,
    seed: int,
    epoch: int,
    lengths: Sequence[int] | None = None,
) -> list[torch.Tensor]:
    """The rows of every batch of an epoch, in order: the same in every process.

    Args:
        lengths: of every example; neighbours in length then share a batch, so that
            little of it is padding.
    """
    order = epoch_order(n, seed, epoch)
    if lengths is None:
        return list(order.split(batch_size))
    lengths, batches = torch.as_tensor(lengths), []
    for pool in order.split(_POOL * batch_size):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    # The batches of a pool go from short to long: they are put in random order again.
    return [batches[i] for i in epoch_order(len(batches), seed + 1, epoch).tolist()]


def share(
    batches: Sequence[torch.Tensor], processes: int = 1, rank: int = 0
) -> list[Share]:
    """What process ``rank`` of ``processes`` computes of an epoch's batches.

    Every global batch is dealt out to the processes. Weighted by ``Share.weight`` and
    averaged over processes, their mean losses are the batch's mean loss, however uneven
    the shares.
    """
    shares = []
    for batch in batches:
        own = batch[rank::processes]
        weight = len(own) * processes / len(batch)
        # with fewer examples than processes: take part all the same, but weigh nothing
        shares.append(Share((own if len(own) else batch[:1]).tolist(), weight))
    return shares


class Rows(Dataset):
    """Rows of several tensors; a whole batch is one indexing operation."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0]) if self.tensors else 0

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, ...]:
        index = torch.tensor(rows)  # once: torch would turn the list for each tensor
        return tuple(tensor[index] for tensor in self.tensors)


def loader(data: Dataset, batches: list[list[int]]) -> DataLoader:
    """Batches of these rows, made by the data set's ``collate`` if it has one."""
    collate = getattr(data, "collate", None)
    if isinstance(data, Rows):  # they come as a batch already
        collate = _as_it_is
    return DataLoader(data, batch_sampler=batches, collate_fn=collate)


def _as_it_is(batch):
    return batch


def padded(rows: Sequence[Sequence[int]], filler: int) -> tuple[torch.Tensor, ...]:
    """Rows of numbers and their mask, int64 (rows, longest), filled up on the right."""
    longest = max(map(len, rows))
    sizes = torch.tensor([len(row) for row in rows])
    filled = [[*row, *[filler] * (longest - len(row))] for row in rows]
    return torch.tensor(filled), (torch.arange(longest) < sizes[:, None]).long()


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor, dim: int | None = None
) -> torch.Tensor:
    """Mean of the values whose mask is true; what padding holds (NaN, too) is ignored.

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
