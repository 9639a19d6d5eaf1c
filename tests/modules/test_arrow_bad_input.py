"""Files that cannot be read as they are: one clear error, with file and block, as early as can be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modules.arrow_dataset import ArrowDataset, ParquetDataset
from modules.data_error import DataError
from tests.modules.tables import arrow, parquet, table


def write(folder: Path, *tables: pa.Table, group: int = 2) -> Path:
    """Write a Parquet file for each table."""
    folder.mkdir(exist_ok=True)
    for index, content in enumerate(tables):
        pq.write_table(content, folder / f"{index}.parquet", row_group_size=group)
    return folder


def read(data: Any, **options: Any) -> None:
    """Read an epoch."""
    for _ in data.loader(3, **options):
        pass


def test_nothing_there(tmp_path: Path) -> None:
    """A path without a file is named."""
    for paths in (tmp_path, tmp_path / "none.parquet", f"{tmp_path}/*.parquet", [str(tmp_path)]):
        with pytest.raises(DataError, match="names no file"):
            ParquetDataset(paths)
    with pytest.raises(DataError, match="list of files is empty"):
        ParquetDataset([])


def test_unreachable_uri() -> None:
    """A URI that nothing can be read from is an error at once, which quotes it."""
    with pytest.raises(DataError, match="nowhere://x/y cannot be reached"):
        ParquetDataset("nowhere://x/y")
    with pytest.raises(DataError, match=r"file:///nowhere/x\.parquet names no file"):
        ParquetDataset("file:///nowhere/x.parquet")
    with pytest.raises(DataError, match="is in another file system than"):
        ParquetDataset([__file__, "mock:///x.parquet"], filesystem=None)


def test_missing_column(tmp_path: Path) -> None:
    """A column that is not there is named, with the file and the nearest name."""
    folder = write(tmp_path / "d", pa.table({"label": [1, 2]}))
    with pytest.raises(DataError, match=r"0\.parquet: Column 'lable' is missing\. Did you mean 'label'\?"):
        ParquetDataset(folder, columns=["lable"])
    with pytest.raises(DataError, match="is one string"):
        ParquetDataset(folder, columns="label")
    with pytest.raises(DataError, match="asks for no column"):
        ParquetDataset(folder, columns=[])


def test_schemas_that_differ(tmp_path: Path) -> None:
    """A column that another file lacks, has more, or has with another type is named with both files."""
    whole, other = pa.table({"a": [1], "b": [1.0]}), pa.table({"a": [1]})
    with pytest.raises(DataError, match=r"1\.parquet: column 'b' is missing, and .*0\.parquet has it"):
        ParquetDataset(write(tmp_path / "less", whole, other))
    with pytest.raises(DataError, match=r"1\.parquet: column 'b' is there, and not in .*0\.parquet"):
        ParquetDataset(write(tmp_path / "more", other, whole))
    with pytest.raises(DataError, match=r"1\.parquet: column 'a' is double, and int64 in .*0\.parquet"):
        ParquetDataset(write(tmp_path / "type", other, pa.table({"a": [1.0]})))
    assert len(ParquetDataset(tmp_path / "more", columns=["a"])) == 2


@pytest.mark.parametrize("kind", ["struct", "map", "decimal"])
def test_columns_without_a_tensor_form(tmp_path: Path, kind: str) -> None:
    """A column that no tensor can hold is refused by name and type, unless it is left out."""
    columns = {
        "struct": pa.array([{"x": 1}]),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "decimal": pa.array([1]).cast(pa.decimal128(25)),
    }
    folder = write(tmp_path / "d", pa.table({"odd": columns[kind], "a": [1]}))
    with pytest.raises(DataError, match=f"Column 'odd' is {kind}.*no tensor can hold"):
        ParquetDataset(folder)
    assert len(ParquetDataset(folder, columns=["a"])) == 1


def test_columns_that_do_not_stack(tmp_path: Path) -> None:
    """Columns of different types are not stacked under one name."""
    folder = write(tmp_path / "d", pa.table({"a": [1], "b": [1.0]}))
    with pytest.raises(DataError, match="'x' cannot be stacked"):
        ParquetDataset(folder, columns={"x": ["a", "b"]})


def test_nulls_that_statistics_show(tmp_path: Path) -> None:
    """Nulls are found when the data set is made, with file, row group and column."""
    folder = write(tmp_path / "d", pa.table({"a": [1, 2, 3]}), pa.table({"a": [1, 2, None]}))
    with pytest.raises(DataError, match=r"1\.parquet \(row group 1\): column 'a' has 1 nulls"):
        ParquetDataset(folder)
    assert len(ParquetDataset(folder, filters=[("a", ">", 0)])) == 5


@pytest.mark.parametrize("column", [[1, None, 3], [[1], None, [3]], [[1], [None], [3]], ["a", None, "c"]])
def test_nulls_that_decoding_shows(tmp_path: Path, column: list[Any]) -> None:
    """Without statistics nulls are found when their rows are read, in lists and strings too."""
    pq.write_table(pa.table({"a": column}), tmp_path / "a.parquet", write_statistics=False)
    with pytest.raises(DataError, match=r"a\.parquet \(row group 0\).*[Cc]olumn 'a' has 1 nulls"):
        read(ParquetDataset(tmp_path))


def test_nulls_in_arrow_files(tmp_path: Path) -> None:
    """Arrow files tell their nulls at once."""
    content = pa.table({"a": [1, None]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), content.schema) as file:
        file.write_table(content)
    with pytest.raises(DataError, match=r"a\.arrow \(record batch 0\): column 'a' has 1 nulls"):
        ArrowDataset(tmp_path)
    with pytest.raises(DataError, match="The table: column 'a' has 1 nulls"):
        ArrowDataset(content)


def test_ragged_lists(tmp_path: Path) -> None:
    """Lists of unequal lengths are refused with file, row group and row, also between row groups."""
    inside = write(tmp_path / "in", pa.table({"a": [[1], [2], [3], [4, 5]]}))
    between = write(tmp_path / "between", pa.table({"a": [[1], [2], [3, 4], [5, 6]]}))
    with pytest.raises(DataError, match=r"0\.parquet \(row group 1\): Column 'a' is ragged: row 0 .* row 1"):
        read(ParquetDataset(inside))
    with pytest.raises(DataError, match=r"0\.parquet \(row group 1\): Column 'a' has lists of shape \[2\]"):
        read(ParquetDataset(between), shuffle=True)


@pytest.mark.parametrize("shuffle", [False, "block", "global"])
def test_nan(tmp_path: Path, shuffle: Any) -> None:
    """NaN is refused where it is decoded, with row group, column and row, unless it is allowed."""
    values = np.ones(6, np.float32)
    values[3] = np.nan
    content = pa.table({"a": np.ones(6, np.float32), "b": values, "c": np.full(6, np.inf, np.float32)})
    folder = write(tmp_path / "d", content)
    for columns in (None, {"x": ["a", "b", "c"]}):
        with pytest.raises(
            DataError, match=r"0\.parquet \(row group 1\): Column 'b' has 1 NaN, the first in row 1"
        ):
            read(ParquetDataset(folder, columns=columns), shuffle=shuffle)
        read(ParquetDataset(folder, columns=columns, allow_nan=True), shuffle=shuffle)


def test_nan_in_mapped_files(tmp_path: Path) -> None:
    """NaN in a mapped file is refused when its rows are taken, with its record batch."""
    content = pa.table({"a": [1.0, 2.0, 3.0, float("nan")]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), content.schema) as file:
        file.write_table(content, max_chunksize=2)
    with pytest.raises(DataError, match=r"a\.arrow \(record batch 1\): Column 'a' has 1 NaN"):
        read(ArrowDataset(tmp_path), shuffle=True)


@pytest.mark.parametrize("kind", [ParquetDataset, ArrowDataset])
def test_damaged_files(tmp_path: Path, kind: Any) -> None:
    """Empty and truncated files, and those of another format, are refused by name at once."""
    folder = (parquet if kind is ParquetDataset else arrow)(tmp_path / "d", [9, 9])
    path = sorted(folder.iterdir())[1]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{path.name}.* cannot be read as"):
        kind(folder)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{path.name} is an empty file of 0 bytes"):
        kind(folder)
    path.write_bytes(b"id,x\n1,2\n" * 40)
    with pytest.raises(DataError, match=rf"{path.name}.* cannot be read as"):
        kind(folder)


def test_no_rows(tmp_path: Path) -> None:
    """Files without a row, or without one that passes the filters, are refused; some without are not."""
    empty, full = table(0), table(3)
    with pytest.raises(DataError, match="have no rows"):
        ParquetDataset(write(tmp_path / "none", empty))
    assert len(ParquetDataset(write(tmp_path / "some", empty, full))) == 3
    with pytest.raises(DataError, match="have no rows that pass"):
        ParquetDataset(tmp_path / "some", filters=[("id", ">", 50)])
    with pytest.raises(DataError, match="The table has no rows"):
        ArrowDataset(empty)


def test_filters_that_cannot_be_applied(tmp_path: Path) -> None:
    """Filters of an unknown form or column are quoted."""
    folder = parquet(tmp_path / "d", [3])
    with pytest.raises(DataError, match="cannot be filtered by"):
        ParquetDataset(folder, filters=[("none", ">", 5)])
    with pytest.raises(DataError, match="cannot be understood"):
        ParquetDataset(folder, filters=[("id", "~", 5)])


def test_damage_inside_a_file(tmp_path: Path) -> None:
    """Damaged pages behind a sound footer are found when they are decoded, with the row group."""
    folder = tmp_path / "d"
    folder.mkdir()
    pq.write_table(table(4000), folder / "0.parquet", row_group_size=2000, write_page_checksum=True)
    path = folder / "0.parquet"
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"0\.parquet \(row group 1\) cannot be decoded"):
        read(ParquetDataset(folder))


@pytest.mark.parametrize("change", ["gone", "grown", "rewritten"])
def test_a_file_that_changes(tmp_path: Path, change: str) -> None:
    """A file that changes after the data set was made is refused before it is read."""
    folder = parquet(tmp_path / "d", [9, 9])
    data = ParquetDataset(folder)
    path = folder / "1.parquet"
    if change == "gone":
        path.unlink()
    elif change == "grown":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        os.utime(path, (1, 1))
    with pytest.raises(DataError, match=r"1\.parquet changed during the run"):
        read(data)


def test_a_mapped_file_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped files are looked at again while they are read."""
    from modules import arrow_tables

    monkeypatch.setattr(arrow_tables, "_LOOK_EVERY_S", 0.0)
    folder = arrow(tmp_path / "d", [9, 9])
    data = ArrowDataset(folder)
    data.take([1])
    os.utime(folder / "1.arrow", (1, 1))
    with pytest.raises(DataError, match=r"1\.arrow changed during the run: it was written again"):
        data.take([1])


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_memory_bytes_is_checked(value: Any) -> None:
    """A budget that is no number of bytes is refused."""
    with pytest.raises(DataError, match="memory_bytes="):
        ArrowDataset(table(3), memory_bytes=value)
