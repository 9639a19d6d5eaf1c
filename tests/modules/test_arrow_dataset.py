"""Parquet and Arrow files as data: found, read into tensors, taken by number, shuffled, sent to processes."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from modules.arrow_dataset import ArrowDataset, ParquetDataset
from modules.data_error import DataError
from tests.modules.reading import flat
from tests.modules.tables import arrow, ids, parquet, table

ROWS = [12, 7, 13]


def one(column: Any, **options: Any) -> Any:
    """What a batch has of a column of a table, all rows."""
    data = ArrowDataset(pa.table({"c": column}), **options)
    return next(iter(data.loader(len(data))))["c"]


@pytest.mark.parametrize("form", ["folder", "file", "pattern", "deep pattern", "uri", "list", "path"])
def test_paths(tmp_path: Path, form: str) -> None:
    """A folder, file, pattern, URI or list of them names files, read in the order of their paths."""
    folder = parquet(tmp_path / "part", ROWS)
    (folder / "_SUCCESS").touch()
    (folder / ".hidden.parquet").write_bytes(b"no")
    paths: dict[str, Any] = {
        "folder": str(tmp_path),
        "file": str(folder / "0.parquet"),
        "pattern": f"{folder}/*.parquet",
        "deep pattern": f"{tmp_path}/**/[0-9].parquet",
        "uri": f"file://{folder}",
        "list": [str(folder / "0.parquet"), folder / "1.parquet", f"{folder}/2*"],
        "path": tmp_path,
    }
    data = ParquetDataset(paths[form])
    rows = ROWS[0] if form == "file" else sum(ROWS)
    assert len(data) == rows
    assert flat(ids(data.loader(5))) == list(range(rows))


def test_a_pattern_in_another_file_system(tmp_path: Path) -> None:
    """Patterns are matched in file systems that are not local, too."""
    from pyarrow import fs

    parquet(tmp_path / "a" / "b", ROWS)
    elsewhere = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    assert len(ParquetDataset("a/*/[12].parquet", filesystem=elsewhere)) == 20
    assert len(ParquetDataset("**/*.parquet", filesystem=elsewhere)) == 32
    assert flat(ids(ParquetDataset("a", filesystem=elsewhere).loader(4))) == list(range(32))


@pytest.mark.parametrize("write", [parquet, arrow])
def test_batches_are_tensors(tmp_path: Path, write: Any) -> None:
    """Numbers and fixed-size lists are tensors of their own type, strings are lists, by name."""
    data = (ParquetDataset if write is parquet else ArrowDataset)(write(tmp_path / "d", ROWS))
    batch = list(data.loader(8))[1]
    assert batch["id"].tolist() == list(range(8, 16))
    assert batch["x"].dtype == torch.float32
    assert torch.equal(batch["x"], batch["id"][:, None] * 10.0 + torch.arange(4))
    assert batch["name"] == [f"row {index}" for index in range(8, 16)]
    assert [len(item["id"]) for item in data.loader(8)] == [8, 8, 8, 8]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, 2], pa.uint8()), torch.tensor([1, 2], dtype=torch.uint8)),
        (pa.array([1.5, 2.0], pa.float16()), torch.tensor([1.5, 2.0], dtype=torch.float16)),
        (pa.array([True, False]), torch.tensor([True, False])),
        (pa.array([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]])),
        (pa.array([[[1], [2]], [[3], [4]]]), torch.tensor([[[1], [2]], [[3], [4]]])),
        (pa.array([9, 7, 9]).dictionary_encode(), torch.tensor([9, 7, 9])),
        (pa.array([1, 2], pa.timestamp("us")), torch.tensor([1, 2])),
        (pa.array([1, 2], pa.date32()), torch.tensor([1, 2], dtype=torch.int32)),
        (pa.array([[1, 2], [3, 4], [5, 6]]).slice(1), torch.tensor([[3, 4], [5, 6]])),
        (
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12).reshape(2, 2, 3)),
            torch.arange(12).reshape(2, 2, 3),
        ),
        (pa.chunked_array([[[1, 2]], [[3, 4]]]), torch.tensor([[1, 2], [3, 4]])),
    ],
)
def test_kinds_of_columns(column: Any, expected: torch.Tensor) -> None:
    """Each kind of column keeps its type and shape."""
    found = one(column)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_columns_are_projected_renamed_and_stacked(tmp_path: Path) -> None:
    """A dictionary of columns says what a batch has; several columns under one name are stacked."""
    values = {f"f{index}": np.arange(9000, dtype=np.float32) + index for index in range(3)}
    pq.write_table(pa.table({**values, "y": np.arange(9000)}), tmp_path / "a.parquet", row_group_size=4500)
    data = ParquetDataset(tmp_path, columns={"x": ["f2", "f0"], "label": "y"})
    batch = next(iter(data.loader(9000, shuffle=True)))
    assert list(batch) == ["x", "label"]
    assert torch.equal(batch["x"][:, 1], batch["label"].float())
    assert torch.equal(batch["x"][:, 0], batch["label"].float() + 2)
    assert list(next(iter(ParquetDataset(tmp_path, columns=["y"]).loader(2)))) == ["y"]


@pytest.mark.parametrize("write", [parquet, arrow])
@pytest.mark.parametrize(
    "filters", [[("id", ">=", 10), ("id", "<", 25)], (pc.field("id") > 9) & (pc.field("id") < 25)]
)
@pytest.mark.parametrize("shuffle", [False, "global", "block"])
def test_filters(tmp_path: Path, write: Any, filters: Any, shuffle: Any) -> None:
    """Filtered rows are counted when the data set is made, and are the only ones that are read."""
    kind = ParquetDataset if write is parquet else ArrowDataset
    data = kind(write(tmp_path / "d", ROWS), filters=filters, columns=["x", "id"])
    assert len(data) == 15
    assert sorted(flat(ids(data.loader(4, shuffle=shuffle, window_rows=6)))) == list(range(10, 25))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "compressed", "stream", "table"])
def test_all_sources_have_one_global_order(tmp_path: Path, kind: str) -> None:
    """The order of a global shuffle depends on seed and epoch, not on how rows are stored."""
    if kind == "parquet":
        data: Any = ParquetDataset(parquet(tmp_path / "d", ROWS))
    elif kind == "table":
        data = ArrowDataset(table(32))
    elif kind == "stream":
        with pa.ipc.new_stream(str(tmp_path / "s.arrow"), table(1).schema) as file:
            file.write_table(table(32), max_chunksize=9)
        data = ArrowDataset(tmp_path / "s.arrow")
    else:
        options = {"compression": "zstd"} if kind == "compressed" else {}
        data = ArrowDataset(arrow(tmp_path / "d", ROWS, **options))
    source = data.loader(5, shuffle=True, seed=4)
    expected = ArrowDataset(table(32)).loader(5, shuffle=True, seed=4)
    first, second = list(source), list(source)
    assert [batch["id"].tolist() for batch in first] == ids(expected)
    assert [batch["id"].tolist() for batch in second] == ids(expected)
    assert ids(source) != [batch["id"].tolist() for batch in first]
    for batch in first:
        assert torch.equal(batch["x"], batch["id"][:, None] * 10.0 + torch.arange(4))
        assert batch["name"] == [f"row {index}" for index in batch["id"].tolist()]
    assert ("memory-mapped" in source.description) == (kind in ("arrow", "stream"))


def test_the_budget_decides_how_rows_are_shuffled(tmp_path: Path) -> None:
    """Rows that fit into the budget are shuffled all together, more of them window by window."""
    folder = parquet(tmp_path / "d", ROWS)
    small = ParquetDataset(folder, columns=["id"], memory_bytes=100)
    assert "windows of 5 rows" in small.loader(4, shuffle=True).description
    assert "over all rows" in ParquetDataset(folder, columns=["id"]).loader(4, shuffle=True).description
    with pytest.raises(DataError, match="memory_bytes=100"):
        small.loader(4, shuffle="global")
    with pytest.raises(DataError, match=r"0\.parquet \(row group 0\) has 5 rows.*write smaller row groups"):
        ParquetDataset(folder, columns=["id"], memory_bytes=39).loader(4)
    with pytest.raises(DataError, match="Reading single rows needs all rows in memory"):
        small[0]


def test_a_dataset_is_a_map_style_dataset(tmp_path: Path) -> None:
    """A torch DataLoader reads it by sample, and rows can be taken by number."""
    data = ParquetDataset(parquet(tmp_path / "d", ROWS))
    assert data[-1]["id"].item() == 31
    assert data.take([3, 1])["name"] == ["row 3", "row 1"]
    torch.manual_seed(0)
    batches = list(DataLoader(data, batch_size=8, shuffle=True))
    assert sorted(flat(batch["id"].tolist() for batch in batches)) == list(range(32))
    assert batches[0]["x"].shape == (8, 4)
    with pytest.raises(IndexError, match="32 rows"):
        data[32]


def test_a_dataset_travels(tmp_path: Path) -> None:
    """A pickled loader reads the same, without what was loaded into memory."""
    source = ParquetDataset(parquet(tmp_path / "d", ROWS)).loader(5, shuffle=True, seed=2)
    before = list(source)
    sent = pickle.dumps(source)
    assert len(sent) < 20_000
    again = pickle.loads(sent)
    again.set_epoch(0)
    assert ids(again) == [batch["id"].tolist() for batch in before]


def test_state_is_json_and_refuses_other_data(tmp_path: Path) -> None:
    """The state of a loader is a few numbers, and a loader of other data does not take it."""
    source = ParquetDataset(parquet(tmp_path / "d", ROWS)).loader(5, shuffle="block", seed=2)
    next(iter(source))
    state = json.loads(json.dumps(source.state_dict()))
    assert (state["epoch"], state["position"], state["batches"]) == (0, 5, 1)
    for other in (
        ParquetDataset(parquet(tmp_path / "e", [32])).loader(5, shuffle="block", seed=2),
        ParquetDataset(tmp_path / "d").loader(5, shuffle="global", seed=2),
        ParquetDataset(tmp_path / "d").loader(4, shuffle="block", seed=2),
        ParquetDataset(tmp_path / "d").loader(5, shuffle="block", seed=3),
    ):
        with pytest.raises(ValueError, match="Make it as it was"):
            other.load_state_dict(state)


def test_transform_makes_the_batch(tmp_path: Path) -> None:
    """What `transform` returns is the batch, and it runs where the loader is iterated."""
    threads = set()

    def pair(batch: dict[str, Any]) -> Any:
        threads.add(threading.current_thread())
        return batch["x"], batch["id"]

    batches = list(ParquetDataset(parquet(tmp_path / "d", ROWS)).loader(5, shuffle=True, transform=pair))
    assert batches[0][0].shape == (5, 4)
    assert threads == {threading.current_thread()}


def test_a_loader_that_is_left_ends_its_thread(tmp_path: Path) -> None:
    """Leaving an iteration in the middle ends the thread that reads ahead."""
    for source in (
        ParquetDataset(parquet(tmp_path / "d", ROWS)).loader(2, shuffle="block", window_rows=5),
        ArrowDataset(arrow(tmp_path / "a", ROWS)).loader(2, shuffle=True),
    ):
        iterator = iter(source)
        next(iterator)
        del iterator
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_read_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more windows are decoded in advance than the read-ahead has room for."""
    from modules import arrow_reader

    made = []
    original = arrow_reader.Rows
    monkeypatch.setattr(arrow_reader, "Rows", lambda *args: made.append(args) or original(*args))
    data = ParquetDataset(parquet(tmp_path / "d", [50]), columns=["id"])
    for ahead, windows in ((None, 2), (3 * 5 * 8, 4), (1, 2)):
        made.clear()
        list(data.loader(4, shuffle="block", window_rows=5, read_ahead_bytes=ahead))
        assert [capacity for _, capacity in made] == [5] * windows


def test_batches_are_copies(tmp_path: Path) -> None:
    """Changing a batch changes no later one, and a batch holds no more memory than its own."""
    for shuffle in (False, "block", "global"):
        source = ParquetDataset(parquet(tmp_path / "d", ROWS), columns=["id"]).loader(
            5, shuffle=shuffle, window_rows=9
        )
        kept = []
        for batch in source:
            kept.append(batch["id"].clone())
            assert batch["id"].untyped_storage().nbytes() == batch["id"].nbytes
            batch["id"].fill_(-1)
        assert sorted(torch.cat(kept).tolist()) == list(range(32))
        assert -1 not in flat(ids(source))


@pytest.mark.parametrize("argument", [{"batch_size": 0}, {"batch_size": 2.0}, {"seed": -1}, {"transform": 3}])
def test_arguments_of_loader_are_checked(argument: dict[str, Any]) -> None:
    """A wrong argument of `loader` is named, with its value."""
    name, value = next(iter(argument.items()))
    with pytest.raises(ValueError, match=rf"loader\({name}={value}"):
        ArrowDataset(table(5)).loader(**{"batch_size": 2, **argument})


@pytest.mark.parametrize("argument", [{"shuffle": "all"}, {"window_rows": 0}, {"read_ahead_bytes": 1.5}])
def test_arguments_about_reading_are_checked(argument: dict[str, Any]) -> None:
    """A wrong argument about how rows are read is named, with its value."""
    name, value = next(iter(argument.items()))
    with pytest.raises(DataError, match=rf"loader\({name}={value!r}"):
        ArrowDataset(table(5)).loader(2, **argument)
