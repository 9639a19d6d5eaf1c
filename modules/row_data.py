"""Data sets that give many rows as one batch: what they share, and the loader that they all have.

A data set says how many rows it has and takes any of them by number. From that it gets a loader with a
computed order, single samples for a torch DataLoader, and a fingerprint by which a resumed run recognises
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from modules import rng
from modules.keyed_loader import KeyedLoader
from modules.permutation import Ids
from modules.reading import RandomReading

Batch = dict[str, Any]
"""Tensors of shape (rows, ...), and lists of strings or bytes, by name."""


class RowData(Dataset[Any]):
    """A data set whose subclass has `__len__`, `identity` and `take_rows`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def identity(self) -> str:
        """Return what tells this data from other data, the same on every machine."""
        raise NotImplementedError

    def take_rows(self, ids: Ids) -> Batch:
        """Return the rows `ids`, all of which there are, as one batch."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """What tells this data from other data, the same on every machine."""
        return f"{type(self).__name__}[{len(self)}]-{rng.fold(self.identity()):08x}"

    def take(self, ids: Any) -> Batch:
        """Return rows by number, as one batch: tensors of shape (rows, ...) and lists of strings, by name.

        Args:
            ids: Row numbers, of any kind that NumPy takes for integers; negative ones count from the end.

        Raises:
            IndexError: There is no such row.
        """
        numbers = np.array(ids, dtype=np.int64).reshape(-1)
        rows = len(self)
        numbers[numbers < 0] += rows
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= rows):
            raise IndexError(f"Row {ids} of {rows} rows.")
        return self.take_rows(numbers)

    def __getitem__(self, index: int) -> Batch:
        return {name: value[0] for name, value in self.take([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Return several rows, each as `__getitem__` does: what a DataLoader asks for."""
        taken = self.take(indices)
        return [dict(zip(taken, row, strict=True)) for row in zip(*taken.values(), strict=True)]

    def take_batches(self, ids: Ids, sizes: Sequence[int]) -> Iterator[Batch]:
        """Return the rows `ids` as batches of `sizes` rows."""
        start = 0
        for size in sizes:
            yield self.take_rows(ids[start : start + size])
            start += size

    def _itself(self) -> RowData:
        return self

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | None = None,
        transform: Callable[[Batch], Any] | None = None,
        pin_memory: bool = False,
    ) -> KeyedLoader:
        """Return a loader of batches, to be given to `Trainer.fit` or iterated.

        Args:
            batch_size: Rows of a batch, on each rank.
            shuffle: Take the rows in a keyed order, another each epoch.
            drop_last: Leave out the rows that do not fill a batch on every rank.
            seed: The seed of the order; None takes the run's.
            transform: Called with each batch; what it returns is the batch.
            pin_memory: Copy batches to pinned memory.

        Raises:
            ValueError: An argument is out of its range.
        """
        if not isinstance(shuffle, bool):
            raise ValueError(f"loader(shuffle={shuffle!r}) of a {type(self).__name__}: use True or False.")
        how = "shuffled over all rows" if shuffle else "in order"
        reading = RandomReading(
            len(self),
            self._itself,
            shuffle=shuffle,
            row_bytes=1024,
            ahead=False,
            description=f"{type(self).__name__}({len(self):,} rows) in memory, {how}",
        )
        return KeyedLoader(
            reading,
            len(self),
            data=self.fingerprint,
            batch_size=batch_size,
            drop_last=drop_last,
            seed=seed,
            transform=transform,
            pin_memory=pin_memory,
        )
