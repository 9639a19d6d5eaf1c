"""Columns of Arrow tables as tensors: which columns make which tensor, and how their values get there.

A column of numbers gives a tensor of shape (rows,), fixed-size and equally long lists give (rows, length),
also nested, and several columns of numbers under one name are stacked to (rows, columns). Booleans, times,
dates and dictionaries come as their values; columns of strings or bytes as lists. No loop runs over rows:
Arrow's buffers are read as NumPy arrays, and copied at most once. Nulls, lists of unequal lengths and,
unless they are allowed, NaN are a `DataError`; the caller adds where they were.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modules.data_error import DataError

Columns = Sequence[str] | Mapping[str, str | Sequence[str]] | None
"""Names of columns; or, by the name that a batch has, a column or several that are stacked; None for all."""
_L2_ROWS = 4096
_KNOWN = {
    "halffloat": torch.float16,
    "float": torch.float32,
    "double": torch.float64,
    "bool": torch.bool,
    **{
        f"{sign}int{bits}": getattr(torch, f"{sign}int{bits}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One entry of a batch, and the columns that it is made of.

    Attributes:
        name: The key in the batch.
        columns: One column, or several of numbers that are stacked as the last dimension.
        dtype: The tensor's type; None for strings and bytes, which come as lists.
        shape: The shape of one row. -1 stands for a length that the data must tell (`with_lengths`).
    """

    name: str
    columns: tuple[str, ...]
    dtype: torch.dtype | None
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; of strings and bytes, which are not known, a guess of 64."""
        if self.dtype is None:
            return 64
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def empty(self, rows: int) -> torch.Tensor:
        """Return an unset tensor for so many rows, in NumPy's memory: it asks for huge pages, which rows that
        are taken in random order need.
        """
        kind = torch.empty(0, dtype=self.dtype).numpy().dtype
        return torch.from_numpy(np.empty((rows, *self.shape), kind))


def plan_columns(schema: Any, columns: Columns) -> tuple[Output, ...]:
    """Return what a batch is made of.

    Args:
        schema: The `pyarrow.Schema` of the data.
        columns: What the user asked for.

    Raises:
        DataError: A column is missing, has no tensor form, or does not stack.
    """
    if isinstance(columns, str):
        raise DataError(f"columns={columns!r} is one string. Give a list of names: columns=[{columns!r}].")
    if columns is None:
        wanted: dict[str, tuple[str, ...]] = {name: (name,) for name in schema.names}
    elif isinstance(columns, Mapping):
        wanted = {
            name: (source,) if isinstance(source, str) else tuple(source) for name, source in columns.items()
        }
    else:
        wanted = {name: (name,) for name in columns}
    if not wanted or not all(wanted.values()):
        raise DataError(f"columns={columns!r} asks for no column. There are {', '.join(schema.names)}.")
    return tuple(_output(schema, name, sources) for name, sources in wanted.items())


def _output(schema: Any, name: str, sources: tuple[str, ...]) -> Output:
    forms = []
    for source in sources:
        places = schema.get_all_field_indices(source)
        if len(places) != 1:
            near = difflib.get_close_matches(source, schema.names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" There are {', '.join(schema.names[:20])}."
            told = "is missing" if not places else f"is there {len(places)} times"
            raise DataError(f"Column {source!r} {told}.{hint}")
        try:
            forms.append(_form(schema.field(places[0]).type))
        except TypeError as error:
            raise DataError(
                f"Column {source!r} is {error}, which no tensor can hold. Leave it out with columns=[...], "
                "or write it as numbers, lists of numbers, or strings."
            ) from None
    dtypes = {dtype for dtype, _ in forms}
    if len(forms) == 1:
        dtype, shape = forms[0]
    elif len(dtypes) > 1 or None in dtypes or any(shape for _, shape in forms):
        kinds = {source: str(schema.field(source).type) for source in sources}
        raise DataError(
            f"The columns of {name!r} cannot be stacked: {kinds}. Stack columns of one type of numbers, and "
            "give the others names of their own."
        )
    else:
        dtype, shape = forms[0][0], (len(forms),)
    return Output(name=name, columns=sources, dtype=dtype, shape=shape)


def _form(kind: Any) -> tuple[torch.dtype | None, tuple[int, ...]]:
    """Return the type and the shape of a row of a column; raises TypeError with the type's name."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _form(kind.value_type)
    if hasattr(kind, "storage_type"):
        dtype, shape = _form(kind.storage_type)
        if not hasattr(kind, "permutation"):
            return dtype, shape
        if list(kind.permutation or ()) not in ([], list(range(len(kind.shape)))):
            raise TypeError(str(kind))
        return dtype, tuple(kind.shape)
    if str(kind) in _KNOWN:
        return _KNOWN[str(kind)], ()
    if types.is_temporal(kind) and not types.is_interval(kind):
        return (torch.int32 if kind.bit_width == 32 else torch.int64), ()
    if _is_text(kind):
        return None, ()
    if types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind):
        dtype, shape = _form(kind.value_type)
        if dtype is not None:
            return dtype, (kind.list_size if types.is_fixed_size_list(kind) else -1, *shape)
    raise TypeError(str(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


def with_lengths(output: Output, first: Any) -> Output:
    """Return `output` with the lengths of its lists.

    Args:
        output: An output of one column.
        first: A `pyarrow.Array` or chunked array of the column, of at least one row.
    """
    if -1 not in output.shape:
        return output
    shape = row_values(_one(first)).shape[1:]
    return Output(name=output.name, columns=output.columns, dtype=output.dtype, shape=tuple(shape))


def fill(output: Output, columns: Mapping[str, Any], target: NDArray[Any], *, allow_nan: bool) -> None:
    """Write the rows of some columns into `target`.

    Args:
        output: What is made.
        columns: The chunked arrays by name.
        target: An array of shape (rows, *output.shape), which is filled.
        allow_nan: Take NaN.

    Raises:
        DataError: There are nulls, NaN or lists of unequal lengths.
    """
    arrays = [list(_chunks(columns[name], name)) for name in output.columns]
    if len(arrays) == 1:
        start = 0
        for values in arrays[0]:
            if values.shape[1:] != output.shape and len(values):
                values = _shaped(values, output)
            target[start : start + len(values)] = values
            start += len(values)
    else:
        _stack(arrays, target)
    if not allow_nan:
        check_nan(output, target)


def check_nan(output: Output, values: NDArray[Any]) -> None:
    """Raise a `DataError` if there is a NaN in `values`, whose rows are those of `output`."""
    if values.dtype.kind != "f" or not values.size:
        return
    # A sum reads the memory once and is NaN if anything is; only then it is worth looking closer.
    with np.errstate(all="ignore"):
        total = torch.from_numpy(values).sum().item() if values.flags.writeable else values.sum()
    if total == total or not (found := np.isnan(values)).any():
        return
    place = np.argwhere(found)[0]
    column = output.columns[place[-1]] if len(output.columns) > 1 else output.columns[0]
    raise DataError(
        f"Column {column!r} has {int(found.sum())} NaN, the first in row {int(place[0])}. Replace them, "
        "leave these rows out with filters=..., or say allow_nan=True."
    )


def _stack(arrays: Sequence[Sequence[NDArray[Any]]], target: NDArray[Any]) -> None:
    """Interleave columns, in pieces that stay in the cache while all columns are written."""
    whole = [chunks[0] if len(chunks) == 1 else np.concatenate(chunks) for chunks in arrays]
    for start in range(0, len(target), _L2_ROWS):
        piece = target[start : start + _L2_ROWS]
        for index, values in enumerate(whole):
            piece[:, index] = values[start : start + _L2_ROWS]


def _shaped(values: NDArray[Any], output: Output) -> NDArray[Any]:
    """Return rows in the shape of `output`: tensors are stored as flat lists."""
    if int(np.prod(values.shape[1:], dtype=np.int64)) == int(np.prod(output.shape, dtype=np.int64)) and (
        values.ndim != len(output.shape) + 1
    ):
        return values.reshape(len(values), *output.shape)
    raise DataError(
        f"Column {output.columns[0]!r} has lists of shape {list(values.shape[1:])}, and others of "
        f"{list(output.shape)}. Make all equally long, or pack them (PackedTokens)."
    )


def _chunks(column: Any, name: str) -> Iterator[NDArray[Any]]:
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    for chunk in chunks:
        try:
            yield row_values(chunk)
        except DataError as error:
            raise DataError(f"Column {name!r} {error}") from None


def row_values(array: Any) -> NDArray[Any]:
    """Return the values of a `pyarrow.Array` as an array of shape (rows, ...), without copying where the
    buffers allow it.

    Raises:
        DataError: There are nulls, or lists of unequal lengths; the message goes on after a column's name.
    """
    import pyarrow as pa

    kind = array.type
    if array.null_count:
        place = int(np.flatnonzero(np.asarray(array.is_null()))[0])
        raise DataError(
            f"has {array.null_count} nulls, the first in row {place}. Fill them, or leave these rows out "
            "with filters=..."
        )
    if pa.types.is_dictionary(kind):
        return row_values(array.dictionary_decode())
    if hasattr(kind, "storage_type"):
        return row_values(array.storage)
    if pa.types.is_fixed_size_list(kind):
        inner = row_values(array.flatten())
        return inner.reshape(len(array), kind.list_size, *inner.shape[1:])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy()
        lengths = np.diff(offsets)
        length = int(lengths[0]) if len(lengths) else 0
        if len(lengths) and (lengths != length).any():
            row = int(np.flatnonzero(lengths != length)[0])
            raise DataError(
                f"is ragged: row 0 has a list of {length} and row {row} one of {int(lengths[row])}. Make all "
                "equally long, or pack them (PackedTokens)."
            )
        inner = row_values(array.flatten())
        return inner.reshape(len(array), length, *inner.shape[1:])
    if pa.types.is_temporal(kind):
        return row_values(array.view(pa.int32() if kind.bit_width == 32 else pa.int64()))
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _one(column: Any) -> Any:
    return column.chunk(0) if hasattr(column, "chunks") else column
