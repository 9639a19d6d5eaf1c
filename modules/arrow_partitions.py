"""Columns that stand in the names of folders, ``year=2024/month=5/part.parquet``, as Hive writes them.

Every file has a value of each, for all its rows. A column whose values are whole numbers in all files is one
of int32, or int64 where that is too small; any other is one of strings. A column that the files have too is
taken from the folders' names. A file that lacks a column which others have, or has the name that stands
for no value, is a `DataError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from modules.arrow_listing import Listing
from modules.data_error import DataError

_NONE = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Partitions:
    """What the folders' names say.

    Attributes:
        values: For each file the value of each column, as a `pyarrow.Scalar`; empty without such columns.
    """

    values: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.values[0]) if self.values else ()

    def of(self, file: int) -> Mapping[str, Any]:
        """Return the values of file `file`."""
        return self.values[file] if self.values else {}

    def schema(self, schema: Any) -> Any:
        """Return a file's `pyarrow.Schema` with the columns, behind its own."""
        import pyarrow as pa

        if not self.values:
            return schema
        kept = [item for item in schema if item.name not in self.values[0]]
        return pa.schema([*kept, *(pa.field(name, item.type) for name, item in self.values[0].items())])

    def column(self, file: int, name: str, rows: int) -> Any:
        """Return a column of so many rows of a file, as a `pyarrow.Array`."""
        import pyarrow as pa

        return pa.repeat(self.values[file][name], rows)

    def guarantee(self, file: int) -> Any:
        """Return what holds for all rows of a file, as a `pyarrow.compute.Expression`; None where nothing is
        said.
        """
        import pyarrow.compute as pc

        found = None
        for name, value in self.of(file).items():
            equal = pc.field(name) == value
            found = equal if found is None else found & equal
        return found

    def identity(self) -> str:
        """Return what tells these from others, the same on every machine; empty without columns."""
        return "".join(f" {[(name, str(item)) for name, item in part.items()]}" for part in self.values)


def partitions_of(listing: Listing, partitioning: str | None) -> Partitions:
    """Return what the names of folders say of the files of `listing`.

    Args:
        listing: The files.
        partitioning: ``"hive"``; None takes folders for folders.

    Raises:
        DataError: The way is unknown, there is no such folder, or a file lacks a value.
    """
    if partitioning is None:
        return Partitions()
    if partitioning != "hive":
        raise DataError(f'partitioning={partitioning!r} is unknown. Use "hive", or leave it out.')
    found = [_pairs(file.below) for file in listing.files]
    names = list(dict.fromkeys(name for pairs in found for name in pairs))
    if not names:
        raise DataError(
            f'partitioning="hive" finds no folder named like "year=2024" above {listing.files[0].path}. '
            "Give the folder that holds these, or leave it out."
        )
    for file, pairs in zip(listing.files, found, strict=True):
        for name in names:
            if name not in pairs:
                raise DataError(
                    f'{file.path} is in no folder "{name}=...", and others are. Move it into one.'
                )
            if pairs[name] == _NONE:
                raise DataError(f"{file.path}: column {name!r} is null for all its rows. Leave the file out.")
    kinds = {name: _kind([pairs[name] for pairs in found]) for name in names}
    return Partitions(tuple({name: _scalar(pairs[name], kinds[name]) for name in names} for pairs in found))


def _pairs(path: str) -> dict[str, str]:
    """Return the names and values of the folders of a path.

    >>> _pairs("year=2024/city=New%20York/0.parquet")
    {'year': '2024', 'city': 'New York'}
    """
    pairs = {}
    for folder in path.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if equals and name:
            pairs[unquote(name)] = unquote(value)
    return pairs


def _kind(values: list[str]) -> Any:
    import pyarrow as pa

    if not all(_WHOLE.fullmatch(value) for value in values):
        return pa.string()
    return pa.int32() if all(-(2**31) <= int(value) < 2**31 for value in values) else pa.int64()


def _scalar(value: str, kind: Any) -> Any:
    import pyarrow as pa

    return pa.scalar(value if kind == pa.string() else int(value), kind)
