"""A loader whose order is computed: any rank reads its share, from any place, without reading what is before.

Iterated by itself it yields all batches of an epoch, and the next epoch the next time. The Trainer asks it
for one rank's share instead: rank r of W takes places r, r + W, r + 2 W, ... of the one common order, as
torch's `DistributedSampler` deals, so the sequence of samples is the same at any number of ranks, and each
sample comes exactly once an epoch. Its state is a `Cursor`: numbers. Fails where the data set cannot be
read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from modules import rng
from modules.cursor import Cursor
from modules.order import BatchPlan, ListedPlan, StridedPlan
from modules.reading import Reading

_MAX_SEED = 2**32 - 1


class KeyedLoader:
    """Batches of a data set; data sets make them with their method ``loader``.

    Args:
        reading: Where rows come from, and in which order.
        length: Rows.
        data: What tells this data from other data.
        batch_size: Rows of a batch, on each rank.
        drop_last: Leave out the rows that do not fill a batch on every rank.
        seed: The seed of the order. None takes the run's: that of the Trainer, or of `seed_everything`.
        transform: Called with each batch, in the process that trains; what it returns is the batch.
        pin_memory: Copy batches to pinned memory, from which they go to a GPU without waiting.

    Attributes:
        batch_size: As given.
        drop_last: As given.
    """

    def __init__(
        self,
        reading: Reading,
        length: int,
        *,
        data: str = "",
        batch_size: int,
        drop_last: bool = False,
        seed: int | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        pin_memory: bool = False,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                f"loader(batch_size={batch_size!r}): not a number of rows. Use an int of at least 1."
            )
        if seed is not None and not 0 <= seed <= _MAX_SEED:
            raise ValueError(f"loader(seed={seed!r}): not a seed. Use a whole number from 0 to {_MAX_SEED}.")
        if transform is not None and not callable(transform):
            raise ValueError(f"loader(transform={transform!r}): not callable. Give a function of a batch.")
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._reading = reading
        self._length = length
        self._data = data
        self._seed = seed
        self._transform = transform
        self._pins = pin_memory
        self._cursor = Cursor()

    @property
    def description(self) -> str:
        """What is read and how, in one line."""
        return self._reading.description

    @property
    def rows(self) -> int:
        """Rows of the data set."""
        return self._length

    @property
    def fingerprint(self) -> str:
        """What the order of samples depends on, besides seed and epoch."""
        return f"{self._data or self._length} {self._reading.identity}"

    def share(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        pad: bool = False,
        whole_batches: bool = False,
    ) -> Share:
        """Return one rank's share.

        Args:
            rank: The rank.
            world_size: Ranks.
            seed: The seed of the order, unless the loader has one.
            pad: Repeat rows so that all ranks have equally many.
            whole_batches: Deal whole batches of the order of one rank instead of rows.
        """
        return Share(
            self, rank, world_size, self._seed if self._seed is not None else seed, pad, whole_batches
        )

    def in_order(self) -> KeyedLoader:
        """Return a loader of the same batches that never shuffles."""
        clone = copy.copy(self)
        clone._reading = self._reading.in_order()
        clone._cursor = Cursor()
        return clone

    # ---------------------------------------------------------------- by itself

    def __len__(self) -> int:
        return self.share().plan.num_batches

    def __iter__(self) -> Iterator[Any]:
        cursor = self._cursor
        share = self.share(seed=rng.global_seed() or 0)
        share.start_epoch(cursor.epoch)
        total = share.plan.num_batches
        for index, batch in enumerate(share.iterate(cursor.batches), start=cursor.batches + 1):
            ends = index == total
            self._cursor = Cursor(
                epoch=cursor.epoch + ends,
                position=0 if ends else share.plan.samples_before(index),
                batches=0 if ends else index,
                seed=share.seed,
                fingerprint=self.fingerprint,
            )
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration reads, from its start."""
        if epoch != self._cursor.epoch:
            self._cursor = Cursor(epoch=epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where an iteration stands, as numbers and strings that fit into JSON."""
        return self._cursor.to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called, in the next iteration.

        Raises:
            ValueError: The state is that of other data, or of another batch size or seed.
        """
        cursor = Cursor.from_dict(state)
        share = self.share(seed=rng.global_seed() or 0)
        known = not cursor.fingerprint or (cursor.fingerprint, cursor.seed) == (self.fingerprint, share.seed)
        if not known or (cursor.batches and share.plan.samples_before(cursor.batches) != cursor.position):
            raise ValueError(
                f"The state is of {cursor.fingerprint!r} with seed {cursor.seed}, after {cursor.position} "
                f"rows in {cursor.batches} batches; this loader has {self.fingerprint!r} with seed "
                f"{share.seed} and batches of {self.batch_size}. Make it as it was."
            )
        self._cursor = cursor


class Share:
    """One rank's batches of a `KeyedLoader`.

    Attributes:
        plan: How many rows each rank has in each batch.
        seed: The seed of the order.
    """

    def __init__(
        self, loader: KeyedLoader, rank: int, world_size: int, seed: int, pad: bool, whole_batches: bool
    ) -> None:
        self.seed = seed
        self._loader = loader
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        self._notes: list[list[int]] | None = None
        length, size = loader._length, loader.batch_size
        self.plan: BatchPlan
        if whole_batches:
            full, rest = divmod(length, size)
            sizes = (size,) * full + ((rest,) if rest and not loader.drop_last else ())
            self.plan = ListedPlan(batch_lengths=sizes, world_size=world_size)
        else:
            self.plan = StridedPlan(
                length=length, world_size=world_size, batch_size=size, drop_last=loader.drop_last, pad=pad
            )

    def __len__(self) -> int:
        return self.plan.batches(self._rank)

    def __iter__(self) -> Iterator[Any]:
        return self.iterate()

    def start_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration reads."""
        self._epoch = epoch

    def iterate(self, skip: int = 0) -> Iterator[Any]:
        """Return an iterator over this rank's batches after the first `skip`, which are not read."""
        loader = self._loader
        batch_numbers = range(skip, self.plan.batches(self._rank))
        places: Iterator[range] = map(self.places, batch_numbers)
        if self._notes is not None:
            self._notes.clear()
            places = self._noted(places)
        batches: Iterator[Any] = loader._reading.batches(places, self.seed, self._epoch)
        if loader._pins and torch.accelerator.is_available():
            batches = map(_pinned, batches)
        return batches if loader._transform is None else map(loader._transform, batches)

    def places(self, batch_idx: int) -> range:
        """Return the places in the epoch's order of the rows of a batch; with padding they may go past its
        end, where they begin again.
        """
        size, rank, ranks = self._loader.batch_size, self._rank, self._world_size
        rows = self.plan.samples_in(rank, batch_idx + 1) - self.plan.samples_in(rank, batch_idx)
        if isinstance(self.plan, ListedPlan):
            start = (batch_idx * ranks + rank) * size
            return range(start, start + rows)
        start = batch_idx * size * ranks + rank
        return range(start, start + rows * ranks, ranks)

    def note_batches(self) -> list[list[int]]:
        """Return a list that gets the row numbers of each batch that is read from here on."""
        self._notes = []
        return self._notes

    def _noted(self, places: Iterator[range]) -> Iterator[range]:
        assert self._notes is not None
        for part in places:
            numbers = np.arange(part.start, part.stop, part.step) % self._loader._length
            self._notes.append(self._loader._reading.ids(numbers, self.seed, self._epoch).tolist())
            yield part


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.pin_memory() if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
