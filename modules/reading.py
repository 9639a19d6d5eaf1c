"""How the batches of an epoch are read: row by row from a table, or window by window from blocks.

A reading turns places of the common order into batches. The order depends on (seed, epoch) and on nothing
else, so whichever rank asks for a place gets the same sample. `RandomReading` has a table that gives any row;
its order is a `KeyedPermutation` of all rows. `WindowReading` decodes blocks as it goes along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from modules.arrow_reader import read_windows
from modules.arrow_rows import Batch, join
from modules.arrow_source import Source
from modules.arrow_tables import Table
from modules.arrow_windows import find_window, plan_windows, window_order
from modules.permutation import Ids, KeyedPermutation, order_key

_CHUNK_BYTES = 8 * 2**20


class Reading(Protocol):
    """A way to read a data set.

    Attributes:
        description: What is read and how, in one line, for the user.
        identity: What the order of samples depends on, besides seed and epoch.
    """

    description: str
    identity: str

    def batches(self, places: Iterable[range], seed: int, epoch: int) -> Iterator[Batch]:
        """Return the batches that have the samples at `places`.

        Args:
            places: For each batch its places in the epoch's order, ascending from batch to batch. Places past
                the last sample begin again at the first.
            seed: The seed of the order.
            epoch: The epoch.
        """
        ...

    def ids(self, places: Ids, seed: int, epoch: int) -> Ids:
        """Return the row numbers of the samples at `places`, each less than the number of rows."""
        ...

    def in_order(self) -> Reading:
        """Return a reading of the same rows that never shuffles."""
        ...


class RandomReading:
    """Reads from a table that gives any row, in an order over all rows.

    Args:
        length: Rows.
        table: Returns the table; called when reading begins.
        shuffle: Permute the rows anew each epoch.
        row_bytes: Bytes of a row: so many rows are taken at a time as make 8 MiB.
        ahead: Take the next rows in a thread while the present ones are used.
        description: What is read and how.
    """

    def __init__(
        self,
        length: int,
        table: Callable[[], Table],
        *,
        shuffle: bool,
        row_bytes: int,
        ahead: bool,
        description: str,
    ) -> None:
        self.description = description
        self.identity = "rows" if shuffle else "in order"
        self._length = length
        self._table = table
        self._shuffle = shuffle
        self._rows = max(1, min(65536, _CHUNK_BYTES // max(1, row_bytes)))
        self._ahead = ahead
        self._order: tuple[tuple[int, int], KeyedPermutation] | None = None

    def in_order(self) -> RandomReading:
        """Return a reading of the same rows that never shuffles."""
        clone = copy.copy(self)
        clone._shuffle, clone.identity = False, "in order"
        return clone

    def ids(self, places: Ids, seed: int, epoch: int) -> Ids:
        """Return the row numbers of the samples at `places`."""
        if not self._shuffle:
            return places
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = (seed, epoch), KeyedPermutation(self._length, order_key(seed, epoch, "rows"))
        return self._order[1](places)

    def batches(self, places: Iterable[range], seed: int, epoch: int) -> Iterator[Batch]:
        """Return the batches that have the samples at `places`."""
        table = self._table()
        chunks = self._chunks(places)

        def take(chunk: list[range]) -> Iterator[Batch]:
            together = np.concatenate([np.arange(part.start, part.stop, part.step) for part in chunk])
            if together[-1] >= self._length:
                together %= self._length
            ids = self.ids(together, seed, epoch)
            return table.take_batches(ids, [len(part) for part in chunk])

        if not self._ahead:
            for chunk in chunks:
                yield from take(chunk)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
            first = next(chunks, None)
            task = None if first is None else pool.submit(take, first)
            while task is not None:
                ready = task.result()
                following = next(chunks, None)
                task = None if following is None else pool.submit(take, following)
                yield from ready

    def _chunks(self, places: Iterable[range]) -> Iterator[list[range]]:
        """Return batches in groups of about as many rows as are taken at a time."""
        chunk: list[range] = []
        rows = 0
        for part in places:
            chunk.append(part)
            rows += len(part)
            if rows >= self._rows:
                yield chunk
                chunk, rows = [], 0
        if chunk:
            yield chunk


class WindowReading:
    """Reads blocks as they come, and permutes the rows of a window of them.

    Args:
        source: What is read.
        window_rows: Rows of a window.
        shuffle: Permute the blocks, and the rows within windows, anew each epoch.
        ahead: Windows that are decoded in advance.
        allow_nan: Take NaN.
        description: What is read and how.
    """

    def __init__(
        self,
        source: Source,
        *,
        window_rows: int,
        shuffle: bool,
        ahead: int,
        allow_nan: bool,
        description: str,
    ) -> None:
        self.description = description
        self.identity = f"windows of {window_rows}" if shuffle else "in order"
        self._source = source
        self._window_rows = window_rows
        self._shuffle = shuffle
        self._ahead = ahead
        self._allow_nan = allow_nan
        self._block_rows = [block.rows for block in source.blocks]
        self._length = sum(self._block_rows)

    def in_order(self) -> WindowReading:
        """Return a reading of the same rows that never shuffles."""
        clone = copy.copy(self)
        clone._shuffle, clone.identity = False, "in order"
        return clone

    def ids(self, places: Ids, seed: int, epoch: int) -> Ids:
        """Return the row numbers of the samples at `places`."""
        if not self._shuffle:
            return places
        windows = self._windows(seed, epoch)
        starts = np.cumsum([0, *self._block_rows])
        orders: dict[int, Ids] = {}
        found = np.empty_like(places)
        for index, place in enumerate(places.tolist()):
            number = find_window(windows, place)
            window = windows[number]
            if number not in orders:
                rows = np.concatenate(
                    [np.arange(starts[block], starts[block + 1]) for block in window.blocks]
                )
                orders = {number: rows[window_order(window, seed, epoch)]}
            found[index] = orders[number][place - window.start]
        return found

    def batches(self, places: Iterable[range], seed: int, epoch: int) -> Iterator[Batch]:
        """Return the batches that have the samples at `places`."""
        todo = list(places)
        if not todo:
            return
        windows = self._windows(seed, epoch)
        first = find_window(windows, todo[0].start % self._length)
        turns, last = divmod(todo[-1][-1], self._length)
        last = find_window(windows, last) + len(windows) * (turns - todo[0].start // self._length)
        wanted = [windows[number % len(windows)] for number in range(first, last + 1)]
        stream = read_windows(self._source, wanted, ahead=self._ahead, allow_nan=self._allow_nan)
        try:
            at = -1
            start = stop = windows[first].start + todo[0].start // self._length * self._length
            rows: Any = None
            order: Ids | None = None
            for part in todo:
                pieces: list[Batch] = []
                place, count, step = part.start, len(part), part.step
                while count:
                    while place >= stop:
                        at += 1
                        rows = next(stream)
                        start, stop = stop, stop + wanted[at].rows
                        order = window_order(wanted[at], seed, epoch) if self._shuffle else None
                    here = min(count, -(-(stop - place) // step))
                    local = place - start
                    end = local + (here - 1) * step + 1
                    if order is None:
                        pieces.append(rows.take_range(local, end, step))
                    else:
                        pieces.append(rows.take(np.ascontiguousarray(order[local:end:step])))
                    place += here * step
                    count -= here
                yield join(pieces)
        finally:
            stream.close()  # type: ignore[attr-defined]

    def _windows(self, seed: int, epoch: int) -> Any:
        key = order_key(seed, epoch, "blocks") if self._shuffle else None
        return plan_windows(self._block_rows, self._window_rows, key)
