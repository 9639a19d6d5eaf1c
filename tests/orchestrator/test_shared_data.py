"""A table that is shared: the same rows in process and on workers, which map it instead of copying it."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import orchestrator as pl
from tests.modules.tables import ids, parquet
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import FEATURES, network, quiet_trainer, sgd


def columns(rows: int) -> dict[str, Any]:
    """Numbers of rows, and features."""
    return {
        "id": np.arange(rows),
        "x": torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(1)),
    }


def mapping(address: int) -> str:
    """What is mapped into this process at an address, as Linux tells it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = line.split()[0].split("-")
        if int(start, 16) <= address < int(stop, 16):
            return line
    return ""


class Reads(pl.LightningModule):
    """Remembers ids, and how the table lies in memory."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.net = network()
        self.table = table
        self.seen: list[int] = []
        self.places: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += self.all_gather(batch["id"]).flatten().tolist()
        self.places.append(mapping(self.table.columns["x"].data_ptr()))
        return self.net(batch["x"]).square().mean()

    def configure_optimizers(self) -> Any:
        return sgd(self.parameters())


def test_rows_in_this_process(tmp_path: Path) -> None:
    """Without Ray it is a data set in memory, of tensors or of what files hold."""
    table = pl.SharedTable(columns(10))
    module = Reads(table)
    quiet_trainer().fit(module, table.loader(4, shuffle=True))
    assert sorted(module.seen) == list(range(10))
    files = pl.ParquetDataset(parquet(tmp_path / "p", [5, 6]), columns=["id"])
    assert ids(pl.SharedTable(files).loader(6)) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    again = pickle.loads(pickle.dumps(table))
    assert torch.equal(again.columns["x"], table.columns["x"])
    assert again.fingerprint == table.fingerprint != pl.SharedTable(columns(11)).fingerprint


@pytest.mark.parametrize("data", [{}, {"a": np.arange(0)}, {"a": np.arange(2), "b": np.arange(3)}])
def test_columns_must_be_equally_long(data: Any) -> None:
    """No column, no row, and unequal lengths are refused."""
    with pytest.raises(pl.MisconfigurationError, match="equally many rows"):
        pl.SharedTable(data)


@pytest.mark.parametrize(
    "value", [["a"], np.array(["a"]), torch.ones(2, dtype=torch.bfloat16), torch.tensor(1)]
)
def test_columns_must_be_numbers(value: Any) -> None:
    """A column that is no table of numbers is named."""
    with pytest.raises(pl.MisconfigurationError, match="column 'a' is a"):
        pl.SharedTable({"a": value})


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads what is mapped from Linux's /proc")
def test_workers_map_one_copy(tmp_path: Path) -> None:
    """Ranks read the object store's memory, into which the table is put once for several calls."""
    table = pl.SharedTable(columns(16))
    trainer = group_trainer(tmp_path, max_epochs=1)
    module = Reads(table)
    trainer.fit(module, table.loader(4, shuffle=True))
    assert sorted(module.seen) == list(range(16))
    assert ["plasma" in place for place in module.places] == [True, True]
    stored = table._stored
    trainer = group_trainer(tmp_path, max_epochs=1)
    trainer.fit(Reads(table), table.loader(4, shuffle=True))
    assert table._stored is stored
    assert stored is not None
