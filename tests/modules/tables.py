"""Small Parquet and Arrow files to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def table(rows: int, start: int = 0) -> pa.Table:
    """Rows with `id` (int64, from `start`), `x` (4 float32 made of the id) and `name` (a string)."""
    ids = np.arange(start, start + rows)
    values = (ids[:, None] * 10 + np.arange(4)).astype(np.float32)
    x = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 4)
    return pa.table(
        {"id": pa.array(ids), "x": x, "name": pa.array([f"row {index}" for index in ids], pa.string())}
    )


def parquet(folder: Path, rows: list[int], group: int = 5) -> Path:
    """Write a file for each number of rows, in row groups of `group`; ids go on from file to file."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, count in enumerate(rows):
        pq.write_table(table(count, sum(rows[:index])), folder / f"{index}.parquet", row_group_size=group)
    return folder


def arrow(folder: Path, rows: list[int], group: int = 5, **options: Any) -> Path:
    """Write the same in Arrow files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, count in enumerate(rows):
        content = table(count, sum(rows[:index]))
        settings = pa.ipc.IpcWriteOptions(**options)
        with pa.ipc.new_file(str(folder / f"{index}.arrow"), content.schema, options=settings) as file:
            file.write_table(content, max_chunksize=group)
    return folder


def ids(loader: Any) -> list[list[int]]:
    """The ids of each batch of an iteration."""
    return [batch["id"].tolist() for batch in loader]
