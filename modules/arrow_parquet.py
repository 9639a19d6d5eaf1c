"""Parquet files as blocks: one row group each.

Footers are read when the source is made, many at once; with filters, also the filtered columns,
to know how many rows are left. Nulls that the files' statistics show are refused then, others when they are
decoded. Files are read rather than mapped, because a mapped file that is cut short kills the process. Fails
with a `DataError` that names file and row group.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from modules.arrow_columns import Columns, Output
from modules.arrow_listing import Listing
from modules.arrow_partitions import Partitions
from modules.arrow_source import (
    Block,
    BlockReader,
    agreed_outputs,
    check_rows,
    explained,
    identity_of,
    measured,
    place_of,
)
from modules.data_error import DataError

_OPEN_FILES = 32
_STATISTICS = 200_000


class ParquetSource:
    """Row groups of Parquet files.

    Args:
        listing: The files.
        columns: What a batch is made of, as the user asked for it.
        filters: A `pyarrow.compute.Expression`, or None.
        partitions: Columns that stand in the names of folders.

    Raises:
        DataError: A file is damaged, schemas differ, a column is missing or has nulls, or no row is left.
    """

    kind = "row group"

    def __init__(
        self, listing: Listing, columns: Columns, filters: Any = None, partitions: Partitions | None = None
    ) -> None:
        self.listing = listing
        self.filters = filters
        self._partitions = partitions or Partitions()
        footers = _in_threads(self._footer, range(len(listing.files)))
        schemas = [self._partitions.schema(schema) for _, schema in footers]
        self._schema = schemas[0]
        self.outputs = agreed_outputs(listing, schemas, columns)
        self._names = sorted({name for output in self.outputs for name in output.columns})
        self._own = [name for name in self._names if name not in self._partitions.names]
        self.blocks = tuple(self._find_blocks([footer for footer, _ in footers]))
        check_rows(self.blocks, self.listing, self.filters)
        self.outputs = tuple(self._measured(output) for output in self.outputs)

    def open(self) -> BlockReader:
        """Return a reader with file handles of its own."""
        return _ParquetReader(self)

    def place(self, index: int) -> str:
        """Return where block `index` is, in words."""
        return place_of(self.listing, self.blocks[index], self.kind)

    def identity(self) -> str:
        """Return what tells this data from other data, the same on every machine."""
        return identity_of(self.listing.files, self.outputs, self.filters) + self._partitions.identity()

    def _footer(self, index: int) -> tuple[Any, Any]:
        import pyarrow.parquet as pq

        path = self.listing.files[index].path
        with (
            explained(path, "read as a Parquet file"),
            self.listing.filesystem.open_input_file(path) as file,
        ):
            footer = pq.read_metadata(file)
            return footer, footer.schema.to_arrow_schema()

    def _find_blocks(self, footers: list[Any]) -> Iterator[Block]:
        groups = [
            (file, group) for file, footer in enumerate(footers) for group in range(footer.num_row_groups)
        ]
        if self.filters is not None:
            counts = _in_threads(lambda item: self._count(*item), groups)
        else:
            counts = [footers[file].row_group(group).num_rows for file, group in groups]
            if len(groups) * len(self._own) <= _STATISTICS:
                self._check_nulls(footers)
        for (file, group), rows in zip(groups, counts, strict=True):
            if rows:
                yield Block(file=file, group=group, rows=rows)

    def _count(self, file: int, group: int) -> int:
        with explained(self.listing.files[file].path, f"filtered by {self.filters}"):
            return int(self.scan(file, group, []).count_rows())

    def scan(self, file: int, group: int, columns: list[str]) -> Any:
        """Return a `pyarrow.dataset.Scanner` of the rows of a row group that pass the filters."""
        import pyarrow.dataset as ds

        fragment = ds.ParquetFileFormat().make_fragment(
            self.listing.files[file].path,
            self.listing.filesystem,
            self._partitions.guarantee(file),
            row_groups=[group],
        )
        return fragment.scanner(schema=self._schema, columns=columns, filter=self.filters)

    def read(self, block: Block, parquet: Any) -> Any:
        """Return a row group of an open `pyarrow.parquet.ParquetFile` as a `pyarrow.Table`."""
        table = parquet.read_row_group(block.group, columns=self._own)
        for name in self._names:
            if name not in self._own:
                table = table.append_column(name, self._partitions.column(block.file, name, block.rows))
        return table

    def _check_nulls(self, footers: list[Any]) -> None:
        for file, footer in enumerate(footers):
            flat = {
                footer.schema.column(index).path: index
                for index in range(footer.num_columns)
                if footer.schema.column(index).path in self._own
            }
            for group in range(footer.num_row_groups):
                row_group = footer.row_group(group)
                for name, index in flat.items():
                    column = row_group.column(index)
                    known = column.statistics if column.is_stats_set else None
                    if known is not None and known.has_null_count and known.null_count:
                        block = Block(file=file, group=group, rows=row_group.num_rows)
                        raise DataError(
                            f"{place_of(self.listing, block, self.kind)}: column {name!r} has "
                            f"{known.null_count} nulls. Fill them, or leave these rows out with filters=..."
                        )

    def _measured(self, output: Output) -> Output:
        """Return `output` with the lengths of its lists, from the first row."""
        if -1 not in output.shape:
            return output
        import pyarrow.parquet as pq

        block, name = self.blocks[0], output.columns[0]
        path = self.listing.files[block.file].path
        with (
            explained(self.place(0), "read"),
            self.listing.filesystem.open_input_file(path) as file,
            pq.ParquetFile(file) as parquet,
        ):
            batches = parquet.iter_batches(batch_size=1, row_groups=[block.group], columns=[name])
            first = next(batches).column(0)
        return measured(output, first, self.place(0))


class _ParquetReader:
    """Decodes row groups with Arrow's own threads; at most `_OPEN_FILES` files are open."""

    def __init__(self, source: ParquetSource) -> None:
        self._source = source
        self._open: OrderedDict[int, Any] = OrderedDict()

    def read(self, index: int) -> Mapping[str, Any]:
        """Return the columns of block `index`."""
        source, block = self._source, self._source.blocks[index]
        source.listing.check_unchanged(block.file)
        with explained(source.place(index), "decoded"):
            if source.filters is not None:
                table = source.scan(block.file, block.group, source._names).to_table()
            else:
                table = source.read(block, self._file(block.file))
        if table.num_rows != block.rows:
            raise DataError(
                f"{source.place(index)} has {table.num_rows} rows, and had {block.rows}: it changed during "
                "the run."
            )
        return {name: table.column(name) for name in source._names}

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            self._open.popitem()[1].close(force=True)

    def _file(self, index: int) -> Any:
        import pyarrow.parquet as pq

        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        if len(self._open) >= _OPEN_FILES:
            self._open.popitem(last=False)[1].close(force=True)
        listing = self._source.listing
        file = listing.filesystem.open_input_file(listing.files[index].path)
        self._open[index] = pq.ParquetFile(file, pre_buffer=not listing.is_local)
        return self._open[index]


def _in_threads(work: Callable[[Any], Any], items: Any) -> list[Any]:
    """Return what `work` gives for each item, in order; footers of many files are read at once."""
    todo = list(items)
    if len(todo) < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(min(8, len(todo)), thread_name_prefix="footers") as pool:
        return list(pool.map(work, todo))
