"""The training data of a process that hosts several logical ranks, in the order in which they run.

The loop is driven by the first hosted logical rank; where it closes an accumulation window the others'
batches of that window come, one logical rank after the other. Which batches there are, and how many samples
each has, is known beforehand and the same for any layout. Reading and transfer run under generators that are
keyed to the logical rank and the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modules import rng
from modules.rank_streams import RankStreams
from orchestrator.feed import PlannedFeed, ReadingState

if TYPE_CHECKING:
    from orchestrator.engine import Engine
    from orchestrator.logical_ranks import LogicalRanks


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatch:
    """A batch of another logical rank than the first.

    Attributes:
        index: Its number in the epoch.
        batch: The batch, as it was read.
        scale: Its share of a step relative to an equal one.
    """

    index: int
    batch: Any
    scale: float


class LogicalFeed(PlannedFeed):
    """What the loop reads under ``strategy="elastic"``.

    Args:
        engine: The run.
        logical: The logical ranks of this process.
        limit: What the user gave as ``limit_train_batches``.
    """

    def __init__(self, engine: Engine, logical: LogicalRanks, limit: int | float | None) -> None:
        self._engine = engine
        self._logical = logical
        self._hosted = logical.hosted
        readers = engine.data.training_readers()
        super().__init__(readers[0], engine.strategy, limit)
        self._streams = RankStreams(readers, engine.order_seed)
        self._told: Callable[[int, int], None] | None = None
        self.by_hand = True

    def note_reads(self, told: Callable[[int, int, list[Any]], None]) -> bool:
        """Call `told` for each batch that is read from here on, with its logical rank, its number in the
        epoch and its sample ids; return False where samples have none.
        """
        notes = self._streams.note_batches()
        if notes is None:
            return False
        self._told = lambda rank, index: told(rank, index, notes.popleft())
        return True

    def start(
        self,
        epoch: int,
        skip: int = 0,
        resumed: ReadingState | None = None,
        totals: Sequence[int] = (0, 0),
    ) -> None:
        """Begin an epoch, or go on in one behind `skip` batches of each logical rank, which end a window."""
        self._streams.start_epoch(epoch)
        self._epoch, self._index, self.began_at = epoch, skip, skip
        self._counted = list(totals)
        self.has_batch, self.is_last, self.is_over = True, False, False
        self.by_hand, self.scale = True, 1.0
        self._begin()
        self._logical.key("epoch", epoch)
        self._iterator = self._streams.read(skip, self._turns(skip))
        if resumed is not None:
            rng.restore(resumed.rng)

    def reading(self, rng_now: dict[str, Any]) -> ReadingState:
        """Return what going on from here needs: where a logical rank stands follows from numbers alone."""
        return ReadingState(rng=rng_now, generators=[], epoch_rng={}, epoch_generators=[])

    def restore(self, resumed: ReadingState) -> None:
        """Stand between epochs, as when `resumed` was taken there."""
        rng.restore(resumed.rng)

    def _turns(self, begin: int) -> Iterator[int]:
        """Yield whose batch is next, by the place among the hosted logical ranks, from batch `begin` on."""
        accumulate = self._engine.accumulate
        while begin < self.num_batches:
            end = min(begin + accumulate, self.num_batches)
            for place, rank in enumerate(self._hosted):
                for index in range(begin, end):
                    if self._sizes_of(index)[rank]:
                        yield place
            begin = end

    def _sizes_of(self, index: int) -> Sequence[int]:
        plan = self.loader.plan
        assert plan is not None
        return plan.sizes(index)

    def advance(self) -> bool:
        """Take the first logical rank's next batch; return False when no logical rank has another."""
        index = self._index
        if index >= self.num_batches:
            self.is_over = True
            return False
        self._index = index + 1
        self.is_last = self._index == self.num_batches
        rank = self._hosted[0]
        size, self.scale = self._weight(index, rank)
        self.has_batch = size > 0
        self.batch = self._read(rank, index) if size else None
        return True

    def batches_of(self, rank: int, begin: int, end: int) -> Iterator[RankBatch]:
        """Yield the batches of another logical rank from number `begin` up to `end`, under the generators of
        its transfer. The logical ranks' turns come in order.
        """
        for index in range(begin, end):
            size, scale = self._weight(index, rank)
            if size:
                yield RankBatch(index=index, batch=self._read(rank, index), scale=scale)

    def _weight(self, index: int, rank: int) -> tuple[int, float]:
        """Return how many samples a logical rank has in a batch, and its share relative to an equal one."""
        if index < self._uneven_from:
            return 1, 1.0
        sizes = self._sizes_of(index)
        total, mine = sum(sizes), sizes[rank]
        return mine, 1.0 if mine * len(sizes) == total else mine * len(sizes) / total

    def _read(self, rank: int, index: int) -> Any:
        assert self._iterator is not None
        self._logical.key("read", self._epoch, index, rank)
        batch = next(self._iterator)
        if self._told is not None:
            self._told(rank, index)
        self._logical.key("transfer", self._epoch, index, rank)
        return batch

    def close(self) -> None:
        """Let go of the batch and of the iterator."""
        super().close()
        self._streams.close()
        self.by_hand = True
