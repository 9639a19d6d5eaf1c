"""The batches of several ranks as one stream, in a given order: for a process that trains for several.

A DataLoader is read by one copy of it, so it has one pool of worker processes however many ranks read; its
batch sampler takes the next batch of whichever rank's turn it is. Other readers are read side by side. What
is read is what each rank would read by itself. The order must ask no rank for more batches than it has.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Sampler

from modules.batched import batches_of
from modules.combined_reading import Reader
from modules.keyed_collate import keyed_collate
from modules.loader import RankLoader
from modules.loader_share import copy_with, is_stream


class _Turns(Sampler[Any]):
    """Yields, turn by turn, the next of what several samplers yield; set for each pass by `set_turns`."""

    def __init__(self, samplers: Sequence[Any]) -> None:
        self._samplers = samplers
        self._turns: tuple[Sequence[int], Iterable[int]] = ((), ())
        self.notes: deque[list[Any]] | None = None

    def set_turns(self, skips: Sequence[int], order: Iterable[int]) -> None:
        """Choose what the next pass leaves out of each sampler's, and whose turn it is when."""
        self._turns = skips, order

    def __iter__(self) -> Iterator[Any]:
        skips, order = self._turns
        own = [
            itertools.islice(sampler, skip, None) for sampler, skip in zip(self._samplers, skips, strict=True)
        ]
        for turn in order:
            ids = next(own[turn])
            if self.notes is not None:
                self.notes.append(list(ids) if isinstance(ids, (list, tuple)) else [ids])
            yield ids


class RankStreams:
    """The readers of several ranks over the same data.

    Args:
        readers: One a rank.
        seed: Of what collating draws.
    """

    def __init__(self, readers: Sequence[Reader], seed: int) -> None:
        self.readers = list(readers)
        self._pooled: DataLoader[Any] | None = None
        self._notes: deque[list[Any]] | None = None
        self._own_notes: list[list[list[Any]]] = []
        loaders = [reader.dataloader for reader in self.readers if isinstance(reader, RankLoader)]
        known = [item for item in loaders if item is not None and not is_stream(item)]
        if len(known) == len(self.readers):
            first = known[0]
            slot = "sampler" if first.batch_sampler is None else "batch_sampler"
            self._turns = _Turns([getattr(loader, slot) for loader in known])
            self._pooled = copy_with(first, {slot: self._turns, **keyed_collate(first, seed)})

    def start_epoch(self, epoch: int) -> None:
        """Say which epoch is read next."""
        for reader in self.readers:
            reader.start_epoch(epoch)

    def read(self, skip: int, order: Iterable[int]) -> Iterator[Any]:
        """Return an iterator over batches.

        Args:
            skip: Batches of each rank that were used.
            order: Whose batch is next, by the place among the readers.
        """
        if self._pooled is not None:
            plans = [reader.plan for reader in self.readers]
            skips = [skip if plan is None else min(skip, plan.num_batches) for plan in plans]
            self._turns.set_turns(skips, order)
            if self._notes is not None:
                self._notes.clear()
            batches = batches_of(self._pooled)
            return iter(self._pooled) if batches is None else batches
        own = [reader.iterate(skip) for reader in self.readers]
        if self._own_notes:
            return self._noted(own, order)
        return (next(own[turn]) for turn in order)

    def note_batches(self) -> deque[list[Any]] | None:
        """Return what gets the sample ids of each batch that is read from here on, in the order in which they
        are read; None where samples have none.
        """
        if self._pooled is not None:
            self._notes = self._turns.notes = deque()
            return self._notes
        known = [reader for reader in self.readers if isinstance(reader, RankLoader) and reader.has_numbers]
        if len(known) < len(self.readers):
            return None
        self._own_notes = [reader.note_batches() for reader in known]
        self._notes = deque()
        return self._notes

    def _noted(self, own: Sequence[Iterator[Any]], order: Iterable[int]) -> Iterator[Any]:
        """Yield batches by turn; pass on what the reader whose turn it is has noted of its own."""
        assert self._notes is not None
        self._notes.clear()
        done = [0] * len(own)
        for turn in order:
            batch = next(own[turn])
            notes = self._own_notes[turn]
            ids, notes[done[turn]] = notes[done[turn]], []
            done[turn] += 1
            self._notes.append(ids)
            yield batch

    def close(self) -> None:
        """Let go of what readers hold between batches."""
        for reader in self.readers:
            reader.close()
