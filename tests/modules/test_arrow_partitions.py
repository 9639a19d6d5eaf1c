"""Folders named as Hive names them are columns, in every way of reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.arrow_dataset import ArrowDataset, ParquetDataset
from modules.data_error import DataError

YEARS, CITIES = [2023, 2024, 2024, 2025], ["a b", "c/d", "a b", "ü"]
KINDS = [("parquet", ParquetDataset), ("feather", ArrowDataset)]


def written(folder: Path, kind: str = "parquet") -> Path:
    """Four rows in folders by year and city, as pyarrow writes them."""
    content = pa.table({"id": [0, 1, 2, 3], "year": pa.array(YEARS, pa.int32()), "city": CITIES})
    options = {"partitioning": ["year", "city"], "partitioning_flavor": "hive"}
    if kind == "feather":
        options["file_options"] = ds.IpcFileFormat().make_write_options(compression=None)
    ds.write_dataset(content, folder, format=kind, **options)
    return folder


def rows(data: Any, **options: Any) -> set[tuple[Any, ...]]:
    """The rows of an epoch."""
    batches = list(data.loader(3, **options))
    parts = [
        list(zip(*(b[name] if name == "city" else b[name].tolist() for name in b), strict=True))
        for b in batches
    ]
    return {row for part in parts for row in part}


@pytest.mark.parametrize(("kind", "dataset"), KINDS)
@pytest.mark.parametrize("shuffle", [False, "global", "block"])
def test_folders_are_columns(tmp_path: Path, kind: str, dataset: Any, shuffle: Any) -> None:
    """Whole numbers as int32, others as strings, beside the files' own columns."""
    data = dataset(written(tmp_path / "d", kind), partitioning="hive")
    assert data.columns == ("id", "year", "city")
    assert rows(data, shuffle=shuffle) == set(zip(range(4), YEARS, CITIES, strict=True))
    assert rows(dataset(tmp_path / "d", columns=["year"], partitioning="hive")) == {(y,) for y in YEARS}
    assert dataset(tmp_path / "d").columns == ("id",)


@pytest.mark.parametrize(("kind", "dataset"), KINDS)
def test_folders_can_be_filtered_by(tmp_path: Path, kind: str, dataset: Any) -> None:
    """Alone and together with the files' own columns."""
    folder = written(tmp_path / "d", kind)
    found = rows(dataset(folder, partitioning="hive", filters=[("year", "==", 2024)]))
    assert found == {(1, 2024, "c/d"), (2, 2024, "a b")}
    found = rows(dataset(folder, partitioning="hive", filters=[("city", "==", "a b"), ("id", ">", 0)]))
    assert found == {(2, 2024, "a b")}
    assert found == rows(
        dataset(folder, columns=["id", "year", "city"], partitioning="hive", filters=[("id", "==", 2)])
    )


def test_a_pattern_takes_the_folders_that_it_names(tmp_path: Path) -> None:
    """Above the pattern's first wildcard too; folders above a folder that is given are no columns."""
    folder = written(tmp_path / "run=3")
    found = ParquetDataset(f"{folder}/year=2024/**/*.parquet", partitioning="hive")
    assert rows(found) == {(1, 3, 2024, "c/d"), (2, 3, 2024, "a b")}
    assert ParquetDataset(folder, partitioning="hive").columns == ("id", "year", "city")


def test_the_folders_name_wins_over_the_file(tmp_path: Path) -> None:
    """Where a file has the column too."""
    folder = tmp_path / "x=7"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1.5, 2.5], "y": [0, 1]}), folder / "0.parquet")
    assert sorted(ParquetDataset(tmp_path, partitioning="hive")[1].items()) == [("x", 7), ("y", 1)]


def test_other_folders_are_other_data(tmp_path: Path) -> None:
    """A run does not go on with files of the same names and sizes that lie elsewhere."""
    prints = []
    for year in (1, 2):
        folder = tmp_path / str(year) / f"year={year}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"x": [1]}), folder / "0.parquet")
        prints.append(ParquetDataset(folder.parent, partitioning="hive").fingerprint)
    assert prints[0] != prints[1]


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=4, unique=True))
def test_the_type_holds_all_values(tmp_path_factory: pytest.TempPathFactory, values: list[int]) -> None:
    """int32 where all values fit, else int64; one that is no whole number makes all strings."""
    folder = tmp_path_factory.mktemp("d")
    for value in values:
        (folder / f"k={value}").mkdir()
        pq.write_table(pa.table({"x": [1]}), folder / f"k={value}" / "0.parquet")
    batch = ParquetDataset(folder, partitioning="hive").take(range(len(values)))
    assert sorted(batch["k"].tolist()) == sorted(values)
    assert batch["k"].element_size() == (4 if all(-(2**31) <= value < 2**31 for value in values) else 8)
    (folder / "k=007").mkdir()
    pq.write_table(pa.table({"x": [1]}), folder / "k=007" / "0.parquet")
    texts = ParquetDataset(folder, partitioning="hive").take(range(len(values) + 1))["k"]
    assert sorted(texts) == sorted([*map(str, values), "007"])


def test_what_the_folders_lack_is_named(tmp_path: Path) -> None:
    """No such folder, a file outside, a folder for no value, a table, and an unknown way."""
    plain = tmp_path / "plain"
    plain.mkdir()
    pq.write_table(pa.table({"x": [1]}), plain / "0.parquet")
    with pytest.raises(DataError, match=r'finds no folder named like "year=2024" above .*0\.parquet'):
        ParquetDataset(plain, partitioning="hive")
    with pytest.raises(DataError, match="partitioning='spark' is unknown"):
        ParquetDataset(plain, partitioning="spark")
    with pytest.raises(DataError, match="a table has none"):
        ArrowDataset(pa.table({"x": [1]}), partitioning="hive")
    folder = written(tmp_path / "d")
    pq.write_table(pa.table({"id": [9]}), folder / "year=2024" / "stray.parquet")
    with pytest.raises(DataError, match=r'stray\.parquet is in no folder "city=\.\.\."'):
        ParquetDataset(folder, partitioning="hive")
    (folder / "year=2024" / "stray.parquet").unlink()
    none = folder / "year=2024" / "city=__HIVE_DEFAULT_PARTITION__"
    none.mkdir()
    pq.write_table(pa.table({"id": [9]}), none / "0.parquet")
    with pytest.raises(DataError, match=r"0\.parquet: column 'city' is null for all its rows"):
        ParquetDataset(folder, partitioning="hive")
