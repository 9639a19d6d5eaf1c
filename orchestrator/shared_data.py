"""A table that is kept once per node: all ranks and all trials there read the same memory.

In this process a `SharedTable` is just tensors. When it is sent to Ray workers, it is put into Ray's object
store, once however often it is sent; a worker maps it from its node's store without a copy, and Ray brings
it to another node once. It stays in the store until the program's connection to Ray ends. Fails when a value
is no table of numbers, and as Ray says when the store has no room.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.permutation import Ids
from modules.row_data import Batch, RowData
from orchestrator.errors import MisconfigurationError


class SharedTable(RowData):
    """Columns of numbers, read by row.

    Args:
        data: Tensors or arrays by name, all with equally many rows; or a `ParquetDataset`, `ArrowDataset` or
            other data set with columns of numbers, which is read as a whole now.

    Raises:
        MisconfigurationError: There is no column or no row, lengths differ, or a column is no CPU tensor.
    """

    def __init__(self, data: Mapping[str, Any] | RowData) -> None:
        columns = data.take(np.arange(len(data))) if isinstance(data, RowData) else dict(data)
        self._columns: dict[str, Tensor] | None = {
            name: _column(name, value) for name, value in columns.items()
        }
        lengths = {name: len(value) for name, value in self._columns.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise MisconfigurationError(
                f"SharedTable needs columns of equally many rows, at least one: {lengths}. Give such columns."
            )
        self._rows = len(next(iter(self._columns.values())))
        self._identity = _digest(self._columns)
        self._stored: Any = None

    def __len__(self) -> int:
        return self._rows

    def identity(self) -> str:
        """Return what tells this table from others."""
        return self._identity

    @property
    def columns(self) -> dict[str, Tensor]:
        """The columns by name; in a worker they lie in the object store, and must not be written to."""
        if self._columns is None:
            import ray

            with warnings.catch_warnings():  # torch warns of memory that must not be written to
                warnings.simplefilter("ignore", UserWarning)
                self._columns = {
                    name: torch.from_numpy(array) for name, array in ray.get(self._stored).items()
                }
        return self._columns

    def take_rows(self, ids: Ids) -> Batch:
        """Return a copy of the rows `ids`."""
        index = torch.from_numpy(ids)
        return {name: column.index_select(0, index) for name, column in self.columns.items()}

    def __getstate__(self) -> dict[str, Any]:
        if self._stored is None:
            ray = sys.modules.get("ray")
            if ray is None or not ray.is_initialized():
                return self.__dict__.copy()
            self._stored = ray.put({name: column.numpy() for name, column in self.columns.items()})
        return {**self.__dict__, "_columns": None}


def _column(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value))
    plain = isinstance(value, Tensor) and value.device.type == "cpu" and value.layout is torch.strided
    if not plain or not value.ndim or value.dtype == torch.bfloat16:
        kind = type(value).__name__
        if isinstance(value, Tensor):
            kind = f"{value.dtype} tensor of {value.ndim} dimensions on {value.device}"
        raise MisconfigurationError(
            f"SharedTable: column {name!r} is a {kind}. Give CPU tensors or NumPy arrays of numbers, with "
            "rows as their first dimension, and not bfloat16, which NumPy lacks."
        )
    return value.detach().contiguous()  # type: ignore[no-any-return]


def _digest(columns: Mapping[str, Tensor]) -> str:
    """Return a digest of names, forms and the first and last rows, which is cheap for any table."""
    digest = hashlib.blake2b(digest_size=8)
    for name, column in columns.items():
        digest.update(f"{name} {column.dtype} {list(column.shape)}".encode())
        digest.update(torch.cat([column[:64], column[-64:]]).numpy().tobytes())
    return digest.hexdigest()
