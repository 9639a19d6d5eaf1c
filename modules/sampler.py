"""The samplers that are put into a user's DataLoader on a group: each rank's share of one common order.
 The order depends on (seed, epoch) and on nothing else: not on the rank, the process or what was drawn
before. A sampler that the user chose keeps its meaning: it is asked for its order under random generators set
from (seed, epoch), alike on all ranks, and leaves the process's generators as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import Sampler

from modules import rng
from modules.order import ListedPlan, StridedPlan, deal, epoch_order


class ShardSampler(Sampler[int]):
    """Yields one rank's sample ids of one epoch.

    Args:
        plan: How samples are dealt to ranks. Its length is that of the data, or of `source`'s order.
        rank: This rank, 0 <= rank < plan.world_size.
        shuffle: Draw a new permutation each epoch; ignored when `source` is given.
        seed: The seed of the permutation.
        source: A sampler whose order is dealt instead.
    """

    def __init__(
        self, plan: StridedPlan, *, rank: int, shuffle: bool, seed: int, source: Sampler[int] | None = None
    ) -> None:
        self.plan = plan
        self.rank = rank
        self.shuffle = shuffle
        self.seed = seed
        self.source = source
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.samples(self.rank)

    def __iter__(self) -> Iterator[int]:
        if self.source is None:
            order = epoch_order(self.plan.length, seed=self.seed, epoch=self.epoch, shuffle=self.shuffle)
        else:
            with rng.isolated(rng.fold(self.seed, self.epoch)):
                order = torch.as_tensor(list(self.source), dtype=torch.int64)
        return iter(deal(order, self.plan, self.rank).tolist())


class ShardBatchSampler(Sampler[list[int]]):
    """Yields every W-th batch of a batch sampler of the user's own.

    Args:
        source: The user's batch sampler.
        rank: This rank.
        world_size: Ranks.
        seed: Seed of the generators under which `source` is asked, with the epoch.
    """

    def __init__(self, source: Any, *, rank: int, world_size: int, seed: int) -> None:
        self.source = source
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def _batches(self) -> list[list[int]]:
        with rng.isolated(rng.fold(self.seed, self.epoch)):
            return [list(batch) for batch in self.source]

    def plan(self) -> ListedPlan:
        """Return the sizes of all batches of the epoch; draws the whole epoch once."""
        return ListedPlan(batch_lengths=tuple(map(len, self._batches())), world_size=self.world_size)

    def __len__(self) -> int:
        total = len(self.source) if isinstance(self.source, Sized) else len(self._batches())
        return max(0, -(-(total - self.rank) // self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[self.rank :: self.world_size])


class SkipBatches(Sampler[list[int]]):
    """Yields the batches of another batch sampler after the first `skip`: resuming without loading what was
    used.

    Args:
        source: The batch sampler.
        skip: Batches to leave out.
    """

    def __init__(self, source: Any, skip: int) -> None:
        self.source = source
        self.skip = skip
        self._rest: Iterator[list[int]] | None = None

    def __len__(self) -> int:
        return max(0, len(self.source) - self.skip)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.prime()

    def prime(self) -> Iterator[list[int]]:
        """Skip now, so that whatever the source draws at its start is drawn before the caller goes on; one
        pass only.
        """
        if self._rest is None:
            self._rest = iter(self.source)
            for _ in range(self.skip):
                if next(self._rest, None) is None:
                    break
        return self._rest
