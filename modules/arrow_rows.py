"""Decoded rows in kept buffers: tensors for numbers, Arrow arrays for strings, taken from by row number.

Buffers are made once and filled again and again, because fresh memory costs more than decoding into it. What
`take` returns is always a copy, so that the buffers may be filled while a batch is in use. Fails with a
`DataError` that names the block when its values have no tensor form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from modules.arrow_columns import Output, fill
from modules.arrow_source import BlockReader, Source
from modules.data_error import DataError
from modules.permutation import Ids

Batch = dict[str, Any]
"""Tensors of shape (rows, ...), and lists of strings or bytes, by name."""


class Rows:
    """Rows of a data set, decoded.

    Args:
        outputs: The entries of a batch.
        capacity: The most rows that are held.
    """

    def __init__(self, outputs: Sequence[Output], capacity: int) -> None:
        self.outputs = tuple(outputs)
        self._buffers = {item.name: item.empty(capacity) for item in outputs if item.dtype is not None}
        self._arrays = {name: tensor.numpy() for name, tensor in self._buffers.items()}
        self._texts: dict[str, Any] = {}

    def fill(self, source: Source, reader: BlockReader, blocks: Sequence[int], *, allow_nan: bool) -> None:
        """Hold the rows of `blocks`, one after the other, instead of what was held."""
        import pyarrow as pa

        start = 0
        texts: dict[str, list[Any]] = {item.name: [] for item in self.outputs if item.dtype is None}
        for block in blocks:
            columns = reader.read(block)
            rows = source.blocks[block].rows
            for item in self.outputs:
                try:
                    if item.dtype is None:
                        texts[item.name] += _text(columns[item.columns[0]], item.columns[0])
                    else:
                        target = self._arrays[item.name][start : start + rows]
                        fill(item, columns, target, allow_nan=allow_nan)
                except DataError as error:
                    raise DataError(f"{source.place(block)}: {error}") from None
            start += rows
        self._texts = {name: pa.chunked_array(chunks) for name, chunks in texts.items()}

    def take(self, ids: Ids) -> Batch:
        """Return the rows `ids`, int64 of shape (n,), as a batch of their own."""
        index = torch.from_numpy(ids)
        return {
            item.name: self._texts[item.name].take(ids).to_pylist()
            if item.dtype is None
            else self._buffers[item.name].index_select(0, index)
            for item in self.outputs
        }

    def take_range(self, start: int, stop: int, step: int) -> Batch:
        """Return every `step`-th row from `start` to before `stop` as a batch of their own."""
        return {
            item.name: self._texts[item.name].take(np.arange(start, stop, step)).to_pylist()
            if item.dtype is None
            else self._buffers[item.name][start:stop:step].clone(memory_format=torch.contiguous_format)
            for item in self.outputs
        }


def row_bytes(outputs: Sequence[Output]) -> int:
    """Return the bytes of a decoded row."""
    return sum(item.row_bytes for item in outputs)


def join(parts: Sequence[Mapping[str, Any]]) -> Batch:
    """Return one batch of the rows of several."""
    if len(parts) == 1:
        return dict(parts[0])
    return {
        name: torch.cat([part[name] for part in parts])
        if isinstance(value, torch.Tensor)
        else [item for part in parts for item in part[name]]
        for name, value in parts[0].items()
    }


def _text(column: Any, name: str) -> list[Any]:
    """Return the chunks of a column of strings or bytes, without nulls."""
    import pyarrow as pa

    chunks = column.chunks if hasattr(column, "chunks") else [column]
    if any(chunk.null_count for chunk in chunks):
        nulls = sum(chunk.null_count for chunk in chunks)
        raise DataError(
            f"Column {name!r} has {nulls} nulls. Fill them, or leave these rows out with filters=..."
        )
    return [chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk for chunk in chunks]
