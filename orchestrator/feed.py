"""The stream of training batches, and on a group what the other ranks have at the same moment.

Where lengths are known in advance, every rank computes how many samples each rank has in each batch, and
nothing is exchanged. Where they are not (iterable data sets on a group), ranks exchange one number a batch,
one batch ahead, so that none waits for a rank that has run out. Either way all ranks see the same number of
steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from modules import rng
from modules.combined_reading import CombinedRankLoader, Reader
from orchestrator.batch_limits import batch_limit
from orchestrator.batch_size import batch_size_of
from orchestrator.errors import MisconfigurationError
from orchestrator.onlookers import Advancing
from orchestrator.retaking import Retaking
from orchestrator.strategies.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingState:
    """What reading needs to go on in the middle of an epoch.

    Attributes:
        rng: This rank's random state now.
        generators: States of the loader's own generators now.
        epoch_rng: This rank's random state before the epoch's first batch was drawn; empty between epochs.
        epoch_generators: States of the loader's own generators at that moment.
        epoch_kept: The loader's worker processes, which stay for all epochs, had been started by then.
        kept: They have been started now.
        own: What the loader says itself of where it stands: a stateful one, or several read together.
    """

    rng: dict[str, Any]
    generators: list[Any]
    epoch_rng: dict[str, Any]
    epoch_generators: list[Any]
    epoch_kept: bool = False
    kept: bool = False
    own: dict[str, Any] = field(default_factory=dict)


class Feed(Advancing):
    """What the loop reads: `advance`, then the attributes.

    Attributes:
        batch: The batch, or None when this rank has none.
        has_batch: This rank has a batch.
        is_last: No rank has another batch after this one; False where that is not known yet.
        is_over: All batches of the epoch have been given out.
        by_hand: Some rank has no batch now, so gradients cannot be reduced inside backward.
        scale: This rank's samples relative to the mean over ranks; 1.0 where ranks have equally many.
        is_used_up: The data can be read once and was, so no later epoch has a batch either.
        num_batches: Batches of an epoch; None when not known.
        lends: A rank that has no batch gets another's as `batch`, still without having one.
        keeps: Batches are kept where reading them again would take long, for `go_back`.
        began_at: Batches of the epoch that were used when reading last began.
    """

    lends = False
    keeps = False

    def __init__(self, loader: Reader, strategy: Strategy, num_batches: int | None) -> None:
        super().__init__()
        self.loader = loader
        self.strategy = strategy
        self.num_batches = num_batches
        self.batch: Any = None
        self.has_batch = True
        self.is_last = False
        self.is_over = False
        self.by_hand = False
        self.scale = 1.0
        self.is_used_up = False
        self.began_at = 0
        self._began: tuple[dict[str, Any], list[Any], bool] = ({}, [], False)
        self._iterator: Iterator[Any] | None = None
        self._kept: Retaking | None = None
        self._epoch = 0
        self._index = 0
        self._counted = [0, 0]

    def start(
        self,
        epoch: int,
        skip: int = 0,
        resumed: ReadingState | None = None,
        totals: Sequence[int] = (0, 0),
    ) -> None:
        """Begin an epoch, or go on in one.

        Args:
            epoch: The epoch, from 0.
            skip: Batches of it that this rank has used.
            resumed: With `skip`, the random states that it was read with.
            totals: With `skip`, what `totals` returned there.
        """
        self.loader.start_epoch(epoch)
        if resumed is not None:
            self._restore(resumed.epoch_rng, resumed.epoch_generators)
            self.loader.kept = resumed.epoch_kept
        self._began = rng.capture(), self._generator_states(), self.loader.kept
        self._iterator = self.loader.iterate(skip, None if resumed is None else resumed.own)
        if self.keeps and not self.loader.skips_quickly:
            self._iterator = self._kept = Retaking(self._iterator, skip)
        self._epoch, self._index, self.began_at = epoch, skip, skip
        self._counted = list(totals)
        self.has_batch, self.is_last, self.is_over = True, False, False
        self.by_hand, self.scale = False, 1.0
        self._begin()
        if resumed is not None:
            rng.restore(resumed.rng)

    def forget(self, before: int) -> None:
        """Keep no batches before that number of them."""
        if self._kept is not None:
            self._kept.forget(before)

    @property
    def epoch(self) -> int:
        """The epoch that is read."""
        return self._epoch

    @property
    def position(self) -> int:
        """Batches of the epoch that were asked for."""
        return self._index

    def read_again(self, epoch: int, batches: int, reading: ReadingState, totals: Sequence[int]) -> Any:
        """Stand after so many batches of an epoch, as `go_back`, and return the last of them; None where this
        rank had none.
        """
        self.start(epoch, batches - 1, reading, totals)
        assert self._iterator is not None
        batch = next(self._iterator, None)
        self._index = batches
        self._begin()
        return batch

    def go_back(self, epoch: int, batches: int, reading: ReadingState, totals: Sequence[int]) -> None:
        """Stand after so many batches of an epoch: the next ones are the same as before. The caller sets the
        random states that the process goes on with.

        Args:
            epoch: The epoch.
            batches: So many batches of this rank.
            reading: What `reading` returned there.
            totals: What `totals` returned there.
        """
        kept = self._kept if self._epoch == epoch and self._iterator is not None else None
        if kept is None or not kept.go_back(batches):
            self.start(epoch, batches, reading, totals)
            return
        self._index, self._counted = batches, list(totals)
        self.has_batch, self.is_last = True, False
        self.by_hand, self.scale = False, 1.0
        self._begin()

    def reading(self, rng_now: dict[str, Any]) -> ReadingState:
        """Return what going on from here needs, with `rng_now` as this rank's random state."""
        epoch_rng, epoch_generators, epoch_kept = self._began
        return ReadingState(
            rng=rng_now,
            generators=self._generator_states(),
            epoch_rng=epoch_rng,
            epoch_generators=epoch_generators,
            epoch_kept=epoch_kept,
            kept=self.loader.kept,
            own=self.loader.own_state(),
        )

    def restore(self, resumed: ReadingState) -> None:
        """Stand between epochs, as when `resumed` was taken there."""
        self._restore(resumed.rng, resumed.generators)
        self.loader.kept = resumed.kept
        self.loader.take_state(resumed.own)

    def _generator_states(self) -> list[Any]:
        return [generator.get_state() for generator in self.loader.generators()]

    def _restore(self, state: dict[str, Any], generators: list[Any]) -> None:
        rng.restore(state)
        for generator, own in zip(self.loader.generators(), generators, strict=False):
            generator.set_state(own)

    def _begin(self) -> None:
        """Do what a kind of feed needs before its first batch, still under the epoch's random state."""

    def window_size(self, batch_idx: int, accumulate: int) -> int:
        """Return how many batches the accumulation window has that begins at `batch_idx`."""
        return accumulate

    def totals(self, batches: int) -> tuple[int, int]:
        """Return (batches, samples) used in this epoch, over all ranks, after `batches` of each rank."""
        plan = self.loader.plan
        if plan is not None:
            return plan.batches_before(batches), plan.samples_before(batches)
        return self._counted[0], self._counted[1]

    def close(self) -> None:
        """Let go of the batch and of the iterator, and so of its worker processes."""
        self.batch = None
        self._iterator = self._kept = None
        self.loader.close()
        self._began = {}, [], False
        self._counted = [0, 0]

    def _size(self, batch: Any) -> int:
        """Return the samples in a batch: of several loaders, those of all together."""
        if not isinstance(self.loader, CombinedRankLoader):
            return batch_size_of(batch)
        return sum(batch_size_of(part) for part in self.loader.parts(batch) if part is not None)

    def _weigh(self, sizes: list[int], rank: int) -> None:
        total, mine = sum(sizes), sizes[rank]
        self.by_hand = 0 in sizes
        self.scale = 1.0 if mine * len(sizes) == total else mine * len(sizes) / total
        self.has_batch = mine > 0
        self._sizes = sizes

    def _lend(self) -> None:
        """Hand the batch of the first rank that has one to those that have none. Communicates."""
        source = next(rank for rank, size in enumerate(self._sizes) if size)
        lent = self.strategy.broadcast(self.batch if self.strategy.rank == source else None, source)
        if not self.has_batch:
            self.batch = lent


class PlannedFeed(Feed):
    """A feed whose batches are known in advance; their number may differ from epoch to epoch.

    Args:
        loader: The loader.
        strategy: Whose ranks read together.
        limit: What the user gave as ``limit_train_batches``.
    """

    num_batches: int

    def __init__(self, loader: Reader, strategy: Strategy, limit: int | float | None) -> None:
        super().__init__(loader, strategy, batch_limit("limit_train_batches", limit, loader.num_batches))
        self._limit = limit

    def _begin(self) -> None:
        plan = self.loader.plan
        self.num_batches = batch_limit("limit_train_batches", self._limit, self.loader.num_batches) or 0
        alone = self.strategy.world_size == 1
        self._uneven_from = self.num_batches if plan is None or alone else plan.first_uneven
        self.is_over = self._index >= self.num_batches

    def advance(self) -> bool:
        """Take the next batch; return False when there is none on any rank."""
        index = self._index
        if index >= self.num_batches:
            self._exhaust()
            self.is_over = True
            return False
        self._index = index + 1
        self.is_last = self._index == self.num_batches
        if index >= self._uneven_from:
            plan = self.loader.plan
            assert plan is not None
            self._weigh(list(plan.sizes(index)), self.strategy.rank)
        if self.has_batch:
            assert self._iterator is not None
            try:
                self.batch = next(self._iterator)
            except StopIteration:
                raise MisconfigurationError(
                    f"The train loader promised {self.num_batches} batches or more and ended after {index}. "
                    "Correct the length that it, its batch sampler or its sampler reports."
                ) from None
            if self.loader.plan is None:
                self._counted[0] += 1
                self._counted[1] += self._size(self.batch)
        else:
            self.batch = None
        if self.by_hand and self.lends:
            self._lend()
        return True

    def _exhaust(self) -> None:
        """Ask for the batch behind the last, as a plain loop does: a sampler may draw numbers then."""
        if self._iterator is not None and self.num_batches == self.loader.num_batches:
            next(self._iterator, None)
            self._iterator = None

    def window_size(self, batch_idx: int, accumulate: int) -> int:
        """Return how many batches the accumulation window has that begins at `batch_idx`."""
        return min(accumulate, self.num_batches - batch_idx)


class OpenFeed(Feed):
    """A feed that ends when it ends: that a batch was the last is known only when the next is asked for.

    Nothing is read ahead, so the data draw from the random generators as in a plain loop. On a group the
    ranks tell each other before each batch whether they have one.

    Args:
        loader: The loader.
        strategy: Whose ranks read together.
        limit: At most so many batches; None for all.
        join: Go on until the last rank has run out, instead of ending with the first.
    """

    def __init__(self, loader: Reader, strategy: Strategy, limit: int | None, join: bool) -> None:
        super().__init__(loader, strategy, limit if limit is not None else loader.num_batches)
        self._limit = limit
        self._join = join
        self._noticed = False

    def _begin(self) -> None:
        self.is_over = False

    def advance(self) -> bool:
        """Take the next batch; return False when there is none on any rank."""
        if self.is_over or (self._limit is not None and self._index >= self._limit):
            self.is_over = True
            return False
        assert self._iterator is not None
        nothing = object()
        batch = next(self._iterator, nothing)
        sizes = self.strategy.counts(0 if batch is nothing else max(1, self._size(batch)))
        if not any(sizes) or (0 in sizes and not self._join):
            self._notice(sizes)
            self.is_over = True
            self.is_used_up = self._index == 0 and isinstance(self.loader.source, Iterator)
            return False
        self.batch = None if batch is nothing else batch
        self._weigh(sizes, self.strategy.rank)
        self._counted[0] += sum(size > 0 for size in sizes)
        self._counted[1] += sum(sizes)
        self._index += 1
        if self.by_hand and self.lends:
            self._lend()
        return True

    def _notice(self, sizes: list[int]) -> None:
        """Say, once, that some ranks still had data when the epoch ended for all."""
        if not any(sizes) or self._noticed or self.strategy.rank != 0:
            return
        self._noticed = True
        ended = [rank for rank, size in enumerate(sizes) if size == 0]
        warnings.warn(
            f"The training data of ranks {ended} ended after {self._index} batches, so the epoch ends "
            "for all. Use Trainer(join_uneven=True) to use up the other ranks' data.",
            stacklevel=2,
        )


def make_feed(loader: Reader, strategy: Strategy, limit: int | float | None, join: bool) -> Feed:
    """Return the feed for a loader."""
    total = batch_limit("limit_train_batches", limit, loader.num_batches)
    if loader.exact and total is not None:
        return PlannedFeed(loader, strategy, limit)
    reads_all = limit is None or (isinstance(limit, float) and limit == 1.0)
    return OpenFeed(loader, strategy, None if reads_all else total, join)
