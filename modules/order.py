"""Which sample comes when: pure functions of (seed, epoch, rank, world size, batch size).

The order over all ranks is one permutation per epoch, drawn as torch's `DistributedSampler` draws it. Rank r
of W takes the entries r, r + W, r + 2W, ... of it. Nothing is padded unless asked for, so every sample is
taken exactly once and the last batches of two ranks may differ by one sample. All ranks can compute what
every other rank has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def epoch_order(length: int, *, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Return the sample ids of an epoch in order, int64 of shape (length,).

    Shuffled: ``torch.randperm`` from a generator seeded with ``seed + epoch``, as `DistributedSampler` does.
    """
    if not shuffle:
        return torch.arange(length)
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(length, generator=generator)


class BatchPlan(Protocol):
    """How many samples each rank has in each batch of an epoch; the same answer on every rank."""

    @property
    def num_batches(self) -> int:
        """Batches of the rank that has most."""
        ...

    @property
    def first_uneven(self) -> int:
        """In all batches before this one, ranks have equally many samples."""
        ...

    def sizes(self, batch_idx: int) -> Sequence[int]:
        """Samples that each rank has in batch `batch_idx`, by rank; 0 where a rank has no such batch."""
        ...

    def samples_before(self, batch_idx: int) -> int:
        """Samples in all batches before `batch_idx`, over all ranks."""
        ...

    def batches_before(self, batch_idx: int) -> int:
        """Batches before `batch_idx` that have samples, over all ranks."""
        ...

    def batches(self, rank: int) -> int:
        """Batches that `rank` takes in the epoch."""
        ...

    def samples_in(self, rank: int, batches: int) -> int:
        """Samples in the first `batches` batches of `rank`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StridedPlan:
    """The plan of an order that is dealt to ranks one sample at a time, and cut into batches on each rank.

    Attributes:
        length: Samples in the epoch, over all ranks.
        world_size: Ranks.
        batch_size: Samples of a full batch on one rank.
        drop_last: Leave out the samples that do not fill a batch on every rank.
        pad: Repeat samples from the start of the order until all ranks have equally many, as
            `DistributedSampler` does; this comes before `drop_last`.
    """

    length: int
    world_size: int
    batch_size: int
    drop_last: bool = False
    pad: bool = False

    def samples(self, rank: int) -> int:
        """Samples that `rank` takes in the epoch."""
        if self.pad or self.drop_last:  # then all ranks have equally many
            each = -(-self.length // self.world_size) if self.pad else self.length // self.world_size
            return each // self.batch_size * self.batch_size if self.drop_last else each
        return max(0, -(-(self.length - rank) // self.world_size))

    @property
    def num_batches(self) -> int:
        """Batches of rank 0, which has at least as many samples as any other."""
        return self.batches(0)

    @property
    def first_uneven(self) -> int:
        """The first batch that the last rank does not fill, or `num_batches` when all ranks have equally many
        samples.
        """
        least = self.samples(self.world_size - 1)
        return self.num_batches if least == self.samples(0) else least // self.batch_size

    def samples_before(self, batch_idx: int) -> int:
        """Samples in the batches before `batch_idx`, over all ranks."""
        return sum(self.samples_in(rank, batch_idx) for rank in range(self.world_size))

    def batches_before(self, batch_idx: int) -> int:
        """Batches before `batch_idx` that have samples, over all ranks."""
        return sum(min(batch_idx, self.batches(rank)) for rank in range(self.world_size))

    def batches(self, rank: int) -> int:
        """Batches that `rank` takes in the epoch."""
        return -(-self.samples(rank) // self.batch_size)

    def samples_in(self, rank: int, batches: int) -> int:
        """Samples in the first `batches` batches of `rank`."""
        return min(batches * self.batch_size, self.samples(rank))

    def sizes(self, batch_idx: int) -> Sequence[int]:
        """Samples of each rank in batch `batch_idx`, by rank."""
        start = batch_idx * self.batch_size
        return [max(0, min(self.batch_size, self.samples(rank) - start)) for rank in range(self.world_size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPlan:
    """The plan of batches that were composed beforehand and are dealt to ranks one batch at a time.

    Attributes:
        batch_lengths: Samples in each batch of the epoch, in order, over all ranks.
        world_size: Ranks.
    """

    batch_lengths: tuple[int, ...]
    world_size: int

    @property
    def num_batches(self) -> int:
        """Batches of rank 0."""
        return -(-len(self.batch_lengths) // self.world_size)

    @property
    def first_uneven(self) -> int:
        """The first batch in which two ranks have different numbers of samples, or `num_batches`."""
        return next(
            (index for index in range(self.num_batches) if len(set(self.sizes(index))) > 1), self.num_batches
        )

    def samples_before(self, batch_idx: int) -> int:
        """Samples in the batches before `batch_idx`, over all ranks."""
        return sum(self.batch_lengths[: batch_idx * self.world_size])

    def batches_before(self, batch_idx: int) -> int:
        """Batches before `batch_idx`, over all ranks."""
        return min(batch_idx * self.world_size, len(self.batch_lengths))

    def batches(self, rank: int) -> int:
        """Batches that `rank` takes in the epoch."""
        return len(range(rank, len(self.batch_lengths), self.world_size))

    def samples_in(self, rank: int, batches: int) -> int:
        """Samples in the first `batches` batches of `rank`."""
        return sum(self.batch_lengths[rank : batches * self.world_size : self.world_size])

    def sizes(self, batch_idx: int) -> Sequence[int]:
        """Samples of each rank in its batch `batch_idx`, by rank."""
        row = self.batch_lengths[batch_idx * self.world_size : (batch_idx + 1) * self.world_size]
        return [*row, *[0] * (self.world_size - len(row))]


def deal(order: Tensor, plan: StridedPlan, rank: int) -> Tensor:
    """Return the sample ids that `rank` takes from `order` under `plan`, in order, int64 of shape
    (samples,).
    """
    wanted = plan.samples(rank)
    mine = order[rank :: plan.world_size][:wanted]
    missing = wanted - len(mine)
    if missing > 0:  # padded: ids wrap around to the start of the order
        places = torch.arange(len(mine), wanted) * plan.world_size + rank
        mine = torch.cat([mine, order[places % len(order)]])
    return mine
