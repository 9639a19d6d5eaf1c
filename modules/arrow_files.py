"""Arrow files and tables as blocks: one record batch each, used where it lies.

Files of this machine are mapped into memory; what is not compressed or filtered need not be copied before it
goes into a batch. Null counts stand in the files and are looked at when the source is made. Fails with a
`DataError` that names file and record batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modules.arrow_columns import Columns, plan_columns
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


class ArrowSource:
    """Record batches of Arrow files, in the file or the stream format.

    Files of this machine are mapped into memory rather than read.

    Args:
        listing: The files.
        columns: What a batch is made of, as the user asked for it.
        filters: A `pyarrow.compute.Expression`, or None.
        partitions: Columns that stand in the names of folders.

    Attributes:
        is_mapped: Values can be used where they lie in the mapped files: nothing is compressed or filtered.

    Raises:
        DataError: A file is damaged, schemas differ, a column is missing or has nulls, or no row is left.
    """

    kind = "record batch"

    def __init__(
        self, listing: Listing, columns: Columns, filters: Any = None, partitions: Partitions | None = None
    ) -> None:
        self.listing = listing
        self.filters = filters
        self._partitions = partitions or Partitions()
        opened = [self._footer(index) for index in range(len(listing.files))]
        self.outputs = agreed_outputs(listing, [schema for schema, _, _ in opened], columns)
        self._names = sorted({name for output in self.outputs for name in output.columns})
        self.is_mapped = filters is None and all(lies_in_file for _, _, lies_in_file in opened)
        blocks: list[Block] = []
        first: Any = None
        for file, (_, batches, _) in enumerate(opened):
            for group, batch in enumerate(batches):
                block = Block(file=file, group=group, rows=batch.num_rows)
                if filters is not None:
                    kept = self._filtered(batch, block)
                    block = Block(file=file, group=group, rows=kept.num_rows)
                    batch = kept.to_batches()[0] if kept.num_rows else batch
                if block.rows:
                    self._check_nulls(batch, block)
                    blocks.append(block)
                    first = batch if first is None else first
        self.blocks = tuple(blocks)
        check_rows(self.blocks, self.listing, self.filters)
        self.outputs = tuple(
            measured(output, first.column(output.columns[0]), self.place(0)) for output in self.outputs
        )

    def open(self) -> BlockReader:
        """Return a reader with file handles of its own."""
        return _ArrowReader(self)

    def place(self, index: int) -> str:
        """Return where block `index` is, in words."""
        return place_of(self.listing, self.blocks[index], self.kind)

    def identity(self) -> str:
        """Return what tells this data from other data, the same on every machine."""
        return identity_of(self.listing.files, self.outputs, self.filters) + self._partitions.identity()

    def batches(self, index: int) -> list[Any]:
        """Return all record batches of file `index`; of a mapped file nothing but metadata is read."""
        return self._footer(index)[1]

    def _footer(self, index: int) -> tuple[Any, list[Any], bool]:
        """Return the schema and record batches of a file, and whether these lie in the mapped file."""
        import pyarrow as pa

        path = self.listing.files[index].path
        with explained(path, "read as an Arrow file"):
            if self.listing.is_local:
                file = pa.memory_map(path)
                whole = file.read_buffer()
                file.seek(0)
            else:
                with self.listing.filesystem.open_input_file(path) as remote:
                    whole = remote.read_buffer()
                file = pa.BufferReader(whole)
            try:
                reader = pa.ipc.open_file(file)
                batches = [reader.get_batch(group) for group in range(reader.num_record_batches)]
            except pa.ArrowInvalid as error:
                if (
                    "not an Arrow file" not in str(error).lower()
                    and "not an arrow file" not in str(error).lower()
                ):
                    raise
                file.seek(0)
                reader = pa.ipc.open_stream(file)
                batches = list(reader)
        start = whole.address
        buffers = [buffer for batch in batches[:1] for column in batch.columns for buffer in column.buffers()]
        inside = all(b is None or not b.size or start <= b.address < start + whole.size for b in buffers)
        schema = self._partitions.schema(reader.schema)
        if self._partitions.names:
            batches = [self._with_partitions(batch, index, schema) for batch in batches]
        return schema, batches, self.listing.is_local and inside

    def _with_partitions(self, batch: Any, file: int, schema: Any) -> Any:
        """Return a record batch with the columns of its folders' names."""
        import pyarrow as pa

        named = self._partitions.names
        columns = [
            self._partitions.column(file, name, batch.num_rows) if name in named else batch.column(name)
            for name in schema.names
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _filtered(self, batch: Any, block: Block) -> Any:
        import pyarrow as pa

        with explained(place_of(self.listing, block, self.kind), f"filtered by {self.filters}"):
            return pa.Table.from_batches([batch]).filter(self.filters).combine_chunks()

    def _check_nulls(self, batch: Any, block: Block) -> None:
        for name in self._names:
            column = batch.column(name)
            if column.null_count:
                raise DataError(
                    f"{place_of(self.listing, block, self.kind)}: column {name!r} has {column.null_count} "
                    "nulls. Fill them, or leave these rows out with filters=..."
                )


class _ArrowReader:
    """Gives record batches as they lie in mapped files."""

    def __init__(self, source: ArrowSource) -> None:
        self._source = source
        self._files: dict[int, list[Any]] = {}

    def read(self, index: int) -> Mapping[str, Any]:
        """Return the columns of block `index`."""
        source, block = self._source, self._source.blocks[index]
        source.listing.check_unchanged(block.file)
        if block.file not in self._files:
            self._files[block.file] = source.batches(block.file)
        batch = self._files[block.file][block.group]
        rows = source._filtered(batch, block) if source.filters is not None else batch
        return {name: rows.column(name) for name in source._names}

    def close(self) -> None:
        """Let go of the mapped files."""
        self._files.clear()


class TableSource:
    """The chunks of a `pyarrow.Table` that is in memory already.

    Args:
        table: The table.
        columns: What a batch is made of, as the user asked for it.
        filters: A `pyarrow.compute.Expression`, or None.

    Raises:
        DataError: A column is missing, has nulls or no tensor form, or no row is left.
    """

    is_mapped = False

    def __init__(self, table: Any, columns: Columns, filters: Any = None) -> None:
        with explained("The table", f"filtered by {filters}"):
            self._table = table if filters is None else table.filter(filters)
        self.outputs = plan_columns(table.schema, columns)
        names = sorted({name for output in self.outputs for name in output.columns})
        self._table = self._table.select(names)
        for name in names:
            if nulls := self._table.column(name).null_count:
                raise DataError(
                    f"The table: column {name!r} has {nulls} nulls. Fill them, or use filters=..."
                )
        self._batches = [batch for batch in self._table.to_batches() if batch.num_rows]
        self.blocks = tuple(
            Block(file=0, group=group, rows=batch.num_rows) for group, batch in enumerate(self._batches)
        )
        if not self.blocks:
            raise DataError("The table has no rows. Give one with rows, or another filters=...")
        first = self._batches[0]
        self.outputs = tuple(
            measured(output, first.column(output.columns[0]), self.place(0)) for output in self.outputs
        )

    def open(self) -> BlockReader:
        """Return this: there is nothing to open."""
        return self

    def read(self, index: int) -> Mapping[str, Any]:
        """Return the columns of block `index`."""
        batch = self._batches[index]
        return {name: batch.column(name) for name in batch.schema.names}

    def close(self) -> None:
        """Nothing is open."""

    def place(self, index: int) -> str:
        """Return where block `index` is, in words."""
        return f"The table (chunk {index})"

    def identity(self) -> str:
        """Return what tells this data from other data, the same on every machine."""
        return f"{self._table.num_rows} rows of {', '.join(map(str, self._table.schema))}"
