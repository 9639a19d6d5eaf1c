"""All rows of a data set by number: held decoded in memory, or taken from memory-mapped Arrow files.

Both give the same rows for the same numbers. `MappedTable` takes the rows of many batches at once, in the
order in which they lie in the files, so that each page is touched once and Python runs once per file and not
once per row; the batches are cut from that. Files that change while they are mapped are looked for every
second; one that is cut short in between kills the process, which is the price of mapping. Fails with a
`DataError`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from modules.arrow_columns import Output, check_nan, row_values
from modules.arrow_files import ArrowSource
from modules.arrow_rows import Batch, Rows
from modules.arrow_source import Source
from modules.data_error import DataError
from modules.permutation import Ids

_LOOK_EVERY_S = 1.0


class Table(Protocol):
    """Rows by number."""

    def take(self, ids: Ids) -> Batch:
        """Return the rows `ids` as one batch."""
        ...

    def take_batches(self, ids: Ids, sizes: Sequence[int]) -> Iterator[Batch]:
        """Return the rows `ids` as batches of `sizes` rows."""
        ...


class MemoryTable:
    """All rows, decoded once and kept.

    Args:
        source: What is read.
        allow_nan: Take NaN.
    """

    def __init__(self, source: Source, *, allow_nan: bool) -> None:
        self._rows = Rows(source.outputs, sum(block.rows for block in source.blocks))
        reader = source.open()
        try:
            self._rows.fill(source, reader, range(len(source.blocks)), allow_nan=allow_nan)
        finally:
            reader.close()

    def take(self, ids: Ids) -> Batch:
        """Return the rows `ids` as one batch."""
        return self._rows.take(ids)

    def take_batches(self, ids: Ids, sizes: Sequence[int]) -> Iterator[Batch]:
        """Return the rows `ids` as batches of `sizes` rows."""
        start = 0
        for size in sizes:
            yield self._rows.take(ids[start : start + size])
            start += size


class MappedTable:
    """The rows of memory-mapped Arrow files, copied when they are asked for.

    Args:
        source: What is read; its `is_mapped` is true.
        allow_nan: Take NaN.
    """

    def __init__(self, source: ArrowSource, *, allow_nan: bool) -> None:
        self._source = source
        self._allow_nan = allow_nan
        self._starts = np.cumsum([0, *(block.rows for block in source.blocks)])
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._texts: dict[str, list[Any]] = {}
        self._looked = time.monotonic()
        reader = source.open()
        for index in range(len(source.blocks)):
            columns = reader.read(index)
            for name, column in columns.items():
                self._map(name, column, index)
        reader.close()

    def _map(self, name: str, column: Any, index: int) -> None:
        output = next(item for item in self._source.outputs if name in item.columns)
        if output.dtype is None:
            self._texts.setdefault(name, []).append(column)
            return
        try:
            values = row_values(column)
            if len(output.columns) == 1 and values.shape[1:] != output.shape:
                values = values.reshape(len(values), *output.shape)
        except (DataError, ValueError) as error:
            raise DataError(f"{self._source.place(index)}: column {name!r} {error}") from None
        self._columns.setdefault(name, []).append(values)

    def take(self, ids: Ids) -> Batch:
        """Return the rows `ids` as one batch."""
        return next(self.take_batches(ids, [len(ids)]))

    def take_batches(self, ids: Ids, sizes: Sequence[int]) -> Iterator[Batch]:
        """Return the rows `ids` as batches of `sizes` rows."""
        self._look()
        order = np.argsort(ids, kind="stable")
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        stored = ids[order]
        cuts = np.searchsorted(stored, self._starts).tolist()
        runs = [(block, cuts[block], cuts[block + 1]) for block in np.flatnonzero(np.diff(cuts)).tolist()]
        local = stored - np.repeat(self._starts[:-1], np.diff(cuts))
        gathered = {item.name: self._gather(item, local, runs) for item in self._source.outputs}
        return self._cut(gathered, inverse, sizes)

    def _cut(self, gathered: Batch, inverse: Ids, sizes: Sequence[int]) -> Iterator[Batch]:
        start = 0
        for size in sizes:
            index = inverse[start : start + size]
            yield {
                name: rows.index_select(0, torch.from_numpy(index))
                if isinstance(rows, torch.Tensor)
                else rows.take(index).to_pylist()
                for name, rows in gathered.items()
            }
            start += size

    def _gather(self, item: Output, local: Ids, runs: Sequence[tuple[int, int, int]]) -> Any:
        """Return the rows of an output in the order in which they are stored."""
        import pyarrow as pa

        if item.dtype is None:
            texts = self._texts[item.columns[0]]
            chunks = [texts[block].take(local[start:stop]) for block, start, stop in runs]
            return pa.chunked_array(chunks, type=texts[0].type)
        rows = item.empty(len(local))
        target = rows.numpy()
        for place, name in enumerate(item.columns):
            column = self._columns[name]
            into = target if len(item.columns) == 1 else target[:, place]
            for block, start, stop in runs:
                if into.flags.c_contiguous:
                    np.take(column[block], local[start:stop], axis=0, out=into[start:stop], mode="clip")
                else:
                    into[start:stop] = column[block][local[start:stop]]
        if not self._allow_nan:
            for block, start, stop in runs:
                try:
                    check_nan(item, target[start:stop])
                except DataError as error:
                    raise DataError(f"{self._source.place(block)}: {error}") from None
        return rows

    def _look(self) -> None:
        """Look, once a second, whether the files are still what they were."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            for index in range(len(self._source.listing.files)):
                self._source.listing.check_unchanged(index)
