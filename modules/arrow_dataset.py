"""Parquet and Arrow files as training data, read as they are: no conversion, no second copy on disk.

A data set finds its files, compares their schemas and counts their rows when it is made; whatever is wrong
is said then. `loader` gives batches, shuffled over all rows where these fit into the memory budget or can be
mapped, else block by block. A data set is also a map-style torch `Dataset`, for those who want a
`DataLoader`. It can be sent to other processes, which read for themselves. Fails with a `DataError`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from modules.arrow_columns import Columns
from modules.arrow_files import ArrowSource, TableSource
from modules.arrow_listing import list_files
from modules.arrow_parquet import ParquetSource
from modules.arrow_partitions import partitions_of
from modules.arrow_rows import Batch, row_bytes
from modules.arrow_source import Source
from modules.arrow_tables import MappedTable, MemoryTable, Table
from modules.data_error import DataError
from modules.keyed_loader import KeyedLoader
from modules.permutation import Ids
from modules.reading import RandomReading, Reading, WindowReading
from modules.row_data import RowData

GIB = 2**30
_PIECE_BYTES = 16 * 2**20
_SHUFFLES = (True, False, "global", "block")


class ColumnarData(RowData):
    """What both kinds of files share: all but where rows come from.

    Args:
        data: What rows come from.
        columns: Names of columns; or what a batch shall have, as a dictionary from its names to a column or a
            list of columns, which are stacked to (rows, columns). None takes all columns.
        filters: Rows to take: a `pyarrow.compute.Expression`, or ``[("age", ">", 3), ...]`` as in
            `pyarrow.parquet.read_table`.
        filesystem: A `pyarrow.fs` or fsspec file system that the paths belong to.
        partitioning: ``"hive"`` makes columns of folders named like ``year=2024``: whole numbers where all
            of a name's values are, else strings. None takes folders for folders.
        memory_bytes: Rows may take so much memory, decoded, in each process.
        allow_nan: Take NaN instead of refusing it.

    Raises:
        DataError: Something is missing or damaged, or has no tensor form; the message names file and row
            group or record batch.
    """

    def __init__(
        self,
        data: Any,
        *,
        columns: Columns = None,
        filters: Any = None,
        filesystem: Any = None,
        partitioning: str | None = None,
        memory_bytes: int = 2 * GIB,
        allow_nan: bool = False,
    ) -> None:
        if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int) or memory_bytes < 1:
            raise DataError(
                f"memory_bytes={memory_bytes!r} is not a number of bytes. Use an int such as 2 * 2**30."
            )
        source = self._open(data, columns, _expression(filters), filesystem, partitioning)
        self.memory_bytes = memory_bytes
        self._source = source
        self._allow_nan = allow_nan
        self._rows = sum(block.rows for block in source.blocks)
        self._row_bytes = row_bytes(source.outputs)
        self._table: Table | None = None
        self._lock = threading.Lock()

    def _open(
        self, data: Any, columns: Columns, filters: Any, filesystem: Any, partitioning: str | None
    ) -> Source:
        """Return where rows come from."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._rows:,} rows of {', '.join(self.columns)})"

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that a batch has."""
        return tuple(item.name for item in self._source.outputs)

    def identity(self) -> str:
        """Return what tells this data from other data, the same on every machine."""
        return self._source.identity()

    def take_rows(self, ids: Ids) -> Batch:
        """Return the rows `ids`, all of which there are, as one batch.

        Raises:
            DataError: The rows are more than `memory_bytes` and cannot be mapped.
        """
        return self._random_table().take(ids)

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool | str = False,
        drop_last: bool = False,
        seed: int | None = None,
        window_rows: int | None = None,
        read_ahead_bytes: int | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        pin_memory: bool = False,
    ) -> KeyedLoader:
        """Return a loader of batches, to be given to `Trainer.fit` or iterated.

        Args:
            batch_size: Rows of a batch, on each rank.
            shuffle: True shuffles all rows where they fit into `memory_bytes` or are mapped, else block by
                block; "global" and "block" insist on one of the two; False keeps the order of the files.
            drop_last: Leave out the rows that do not fill a batch on every rank.
            seed: The seed of the order; None takes the run's.
            window_rows: Rows that a block shuffle holds and permutes together; None takes what an eighth of
                `memory_bytes` holds. Without shuffling, rows that are decoded at a time.
            read_ahead_bytes: Decoded bytes that may wait besides the window in use; None for one window. At
                least one window is always decoded in advance.
            transform: Called with each batch; what it returns is the batch.
            pin_memory: Copy batches to pinned memory.

        Raises:
            DataError: An argument does not fit the data.
        """
        reading = self._reading(shuffle, window_rows, read_ahead_bytes)
        return KeyedLoader(
            reading,
            self._rows,
            data=self.fingerprint,
            batch_size=batch_size,
            drop_last=drop_last,
            seed=seed,
            transform=transform,
            pin_memory=pin_memory,
        )

    def _reading(self, shuffle: bool | str, window_rows: int | None, read_ahead_bytes: int | None) -> Reading:
        """Choose how rows are read."""
        if shuffle not in _SHUFFLES:
            raise DataError(f'loader(shuffle={shuffle!r}) is unknown. Use True, False, "global" or "block".')
        for name, value in (("window_rows", window_rows), ("read_ahead_bytes", read_ahead_bytes)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise DataError(
                    f"loader({name}={value!r}) is not a positive int. Leave it out for the default."
                )
        size = self._rows * self._row_bytes
        told = f"{self!r}: {_sized(size)}"
        mapped = self._is_mapped
        if shuffle == "global" or (shuffle is True and (mapped or size <= self.memory_bytes)):
            if not mapped and size > self.memory_bytes:
                raise self._too_large('loader(shuffle="global")')
            where = "memory-mapped" if mapped else "in memory"
            return RandomReading(
                self._rows,
                self._random_table,
                shuffle=True,
                row_bytes=self._row_bytes,
                ahead=mapped,
                description=f"{told} {where}, shuffled over all rows",
            )
        if window_rows is None:
            window_bytes = self.memory_bytes // 8 if shuffle else _PIECE_BYTES
            window_rows = max(1, window_bytes // max(1, self._row_bytes))
        largest = max(self._source.blocks, key=lambda block: block.rows)
        if largest.rows * self._row_bytes > self.memory_bytes:
            place = self._source.place(self._source.blocks.index(largest))
            raise DataError(
                f"{place} has {largest.rows} rows, {_sized(largest.rows * self._row_bytes)} decoded, and "
                f"memory_bytes={self.memory_bytes}. Raise memory_bytes, or write smaller row groups."
            )
        window = max(min(window_rows, self._rows), largest.rows)
        ahead = max(1, (read_ahead_bytes or 0) // (window * self._row_bytes or 1))
        how = f"shuffled in windows of {window:,} rows" if shuffle else "in order"
        return WindowReading(
            self._source,
            window_rows=window_rows,
            shuffle=bool(shuffle),
            ahead=ahead,
            allow_nan=self._allow_nan,
            description=f"{told} decoded from {len(self._source.blocks):,} blocks, {how}",
        )

    @property
    def _is_mapped(self) -> bool:
        return bool(getattr(self._source, "is_mapped", False))

    def _random_table(self) -> Table:
        """Return all rows by number, loading them when they are first asked for."""
        with self._lock:
            if self._table is None:
                if self._is_mapped:
                    assert isinstance(self._source, ArrowSource)
                    self._table = MappedTable(self._source, allow_nan=self._allow_nan)
                elif self._rows * self._row_bytes > self.memory_bytes:
                    raise self._too_large("Reading single rows")
                else:
                    self._table = MemoryTable(self._source, allow_nan=self._allow_nan)
            return self._table

    def _too_large(self, what: str) -> DataError:
        return DataError(
            f"{what} needs all rows in memory: {_sized(self._rows * self._row_bytes)} of {self!r}, and "
            "memory_bytes="
            f'{self.memory_bytes}. Raise it, use loader(shuffle="block"), or write uncompressed Arrow files, '
            "which are "
            "mapped."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class ParquetDataset(ColumnarData):
    """The rows of Parquet files: a file, folder, glob pattern (``**`` for any depth) or URI (``s3://``,
    ``gs://``, ``hdfs://``, ``file://``), or a list of these.

    Arguments are those of `ColumnarData`. Filtered columns are read once at the start, to count rows.
    """

    def _open(
        self, data: Any, columns: Columns, filters: Any, filesystem: Any, partitioning: str | None
    ) -> Source:
        listing = list_files(data, (".parquet", ".pq"), filesystem)
        return ParquetSource(listing, columns, filters, partitions_of(listing, partitioning))


class ArrowDataset(ColumnarData):
    """The rows of Arrow files, in the file (Feather) or stream format: a file, folder, glob pattern or URI,
    or a list of these. Or of a `pyarrow.Table`.

    Uncompressed files of this machine are mapped into memory and never copied as a whole, so their rows are
    shuffled over all files at any size; `memory_bytes` is not about them. Filtered ones are copied. Arguments
    are those of `ColumnarData`.
    """

    def _open(
        self, data: Any, columns: Columns, filters: Any, filesystem: Any, partitioning: str | None
    ) -> Source:
        import pyarrow as pa

        if isinstance(data, pa.Table):
            if partitioning is not None:
                raise DataError(f"partitioning={partitioning!r} is about folders, and a table has none.")
            return TableSource(data, columns, filters)
        listing = list_files(data, (".arrow", ".feather", ".ipc", ".arrows"), filesystem)
        return ArrowSource(listing, columns, filters, partitions_of(listing, partitioning))


def _expression(filters: Any) -> Any:
    """Return filters as a `pyarrow.compute.Expression`, or None."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if filters is None or isinstance(filters, pc.Expression):
        return filters
    try:
        return pq.filters_to_expression(filters)
    except (ValueError, TypeError) as error:
        raise DataError(
            f'filters={filters!r} cannot be understood: {error}. Use [("age", ">", 3)].'
        ) from error


def _sized(size_bytes: int) -> str:
    """Return a number of bytes for reading."""
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.4g} {units[0]}"
