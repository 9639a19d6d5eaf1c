"""What a data set is read in: blocks of rows, and what all sources of blocks have in common.

A source is made by looking at files, not by reading them: the schema of every file is compared with the
first one's, and rows are counted. It holds no open file, so it can be sent to other processes; `open` gives
a reader with file handles of its own. Each file is looked at again before a block of it is read. Whatever is
wrong is a `DataError` that names the file and, where one is at fault, the block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from modules.arrow_columns import Columns, Output, plan_columns, with_lengths
from modules.arrow_listing import DataFile, Listing
from modules.data_error import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows that are decoded together.

    Attributes:
        file: The index of its file.
        group: The index of the row group or record batch in the file.
        rows: Rows that it gives, after filters.
    """

    file: int
    group: int
    rows: int


class BlockReader(Protocol):
    """Reads blocks; not to be used by two threads at a time."""

    def read(self, index: int) -> Mapping[str, Any]:
        """Return the columns of block `index`, each a `pyarrow.ChunkedArray` or `pyarrow.Array`."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class Source(Protocol):
    """Blocks of rows, and what a batch is made of.

    Attributes:
        outputs: The entries of a batch.
        blocks: The blocks that have rows, in order.
    """

    outputs: tuple[Output, ...]
    blocks: tuple[Block, ...]

    def open(self) -> BlockReader:
        """Return a reader with file handles of its own."""
        ...

    def place(self, index: int) -> str:
        """Return where block `index` is, in words."""
        ...

    def identity(self) -> str:
        """Return what tells this data from other data, the same on every machine."""
        ...


def agreed_outputs(listing: Listing, schemas: list[Any], columns: Columns) -> tuple[Output, ...]:
    """Return what a batch is made of, the same in every file."""
    path = listing.files[0].path
    try:
        outputs = plan_columns(schemas[0], columns)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    names = {name for output in outputs for name in output.columns}
    for file, schema in zip(listing.files[1:], schemas[1:], strict=True):
        for name in sorted(names):
            if name not in schema.names:
                raise DataError(
                    f"{file.path}: column {name!r} is missing, and {path} has it. Write all files with one "
                    "schema, or leave the column out with columns=[...]."
                )
            mine, first = schema.field(name).type, schemas[0].field(name).type
            if mine != first:
                raise DataError(
                    f"{file.path}: column {name!r} is {mine}, and {first} in {path}. Write all files with "
                    "one schema."
                )
        if columns is None and (more := sorted(set(schema.names) - names)):
            raise DataError(
                f"{file.path}: column {more[0]!r} is there, and not in {path}. Say which are wanted with "
                "columns=[...]."
            )
    return outputs


def check_rows(blocks: Sequence[Block], listing: Listing, filters: Any) -> None:
    """Raise a `DataError` if there is no block with rows."""
    if not blocks:
        why = "have no rows" if filters is None else f"have no rows that pass {filters}"
        first = listing.files[0].path
        raise DataError(
            f"{first} and the {len(listing.files) - 1} files after it {why}. Give files with rows."
        )


def measured(output: Output, first: Any, place: str) -> Output:
    """Return `output` with the lengths of its lists, from the rows `first` at `place`."""
    try:
        return with_lengths(output, first)
    except DataError as error:
        raise DataError(f"{place}: column {output.columns[0]!r} {error}") from None


def place_of(listing: Listing, block: Block, kind: str) -> str:
    """Return where a block is, in words."""
    return f"{listing.files[block.file].path} ({kind} {block.group})"


def identity_of(files: tuple[DataFile, ...], outputs: tuple[Output, ...], filters: Any) -> str:
    """Return what tells data from other data, the same on every machine."""
    told = [f"{file.path.rpartition('/')[2]}:{file.size_bytes}" for file in files]
    return f"{told} {[(output.name, output.columns) for output in outputs]} {filters}"


@contextlib.contextmanager
def explained(place: str, attempt: str) -> Iterator[None]:
    """Turn what Arrow and the file system raise into a `DataError` that says where."""
    import pyarrow as pa

    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        told = str(error).strip().splitlines()
        raise DataError(
            f"{place} cannot be {attempt}: {told[0] if told else type(error).__name__}. Write the file "
            "again, or leave it out."
        ) from error
