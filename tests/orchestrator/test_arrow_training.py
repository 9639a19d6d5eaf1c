"""Training on Parquet and Arrow files: in process and on a group, each row once, resumed at the very row."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from tests.modules.reading import flat
from tests.modules.tables import arrow, parquet
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import FEATURES, assert_equal_weights, network, quiet_trainer, sgd

ROWS = [12, 7, 14]


class Reads(pl.LightningModule):
    """Learns from `x`, and remembers the ids that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(dropout=0.2)
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert batch["x"].shape[1:] == (FEATURES,)
        self.seen.append(self.all_gather(batch["id"]).flatten().tolist() if self.gathers(batch) else [])
        return self.net(batch["x"] / 300).square().mean()

    def gathers(self, batch: Any) -> bool:
        """Whether ranks have equally many samples in this batch."""
        return len(batch["id"]) == 4

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        mean = batch["id"].double().mean()
        self.log("mean_id", mean, batch_size=len(batch["id"]), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch["id"]

    def configure_optimizers(self) -> Any:
        return sgd(self.parameters())


class Stop(pl.Callback):
    """Saves a checkpoint after some steps and stops."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def data(folder: Path, kind: str) -> Any:
    """A loader over the same rows, shuffled."""
    place = folder / ("a" if kind == "mapped" else "p")
    if not place.exists():
        (arrow if kind == "mapped" else parquet)(place, ROWS)
    if kind == "mapped":
        return pl.ArrowDataset(place, columns=["id", "x"]).loader(4, shuffle=True)
    return pl.ParquetDataset(place, columns=["id", "x"]).loader(4, shuffle=kind, window_rows=10)


@pytest.mark.parametrize("kind", ["global", "block", "mapped"])
def test_each_epoch_has_each_sample_once_in_another_order(tmp_path: Path, kind: str) -> None:
    """A loader passed to fit gives every row once an epoch, in an order of its own for each epoch."""
    module = Reads()
    module.gathers = lambda batch: True  # type: ignore[method-assign]
    quiet_trainer(max_epochs=2).fit(module, data(tmp_path, kind), data(tmp_path, kind))
    batches = module.seen
    first, second = flat(batches[:9]), flat(batches[9:])
    assert sorted(first) == sorted(second) == list(range(33))
    assert first != second


@pytest.mark.parametrize("kind", ["global", "block", "mapped"])
@pytest.mark.parametrize("step", [1, 8, 9, 13])
def test_resuming_goes_on_at_the_very_row(tmp_path: Path, kind: str, step: int) -> None:
    """From a checkpoint of any step, the weights become those of the uninterrupted run, to the bit."""
    torch.manual_seed(1)
    steady = Reads()
    quiet_trainer(max_epochs=2).fit(steady, data(tmp_path, kind))
    torch.manual_seed(1)
    quiet_trainer(Stop(step, tmp_path / "c.ckpt"), max_epochs=2).fit(Reads(), data(tmp_path, kind))
    torch.manual_seed(2)
    resumed = Reads()
    quiet_trainer(max_epochs=2).fit(resumed, data(tmp_path, kind), ckpt_path=tmp_path / "c.ckpt")
    assert_equal_weights(resumed, steady)


def test_other_files_are_not_resumed(tmp_path: Path) -> None:
    """A run in the middle of an epoch does not go on with other files, or shuffled in another way."""
    quiet_trainer(Stop(3, tmp_path / "c.ckpt"), max_epochs=2).fit(Reads(), data(tmp_path, "global"))
    for other in (
        data(tmp_path, "block"),
        pl.ParquetDataset(parquet(tmp_path / "q", [33])).loader(4, shuffle=True),
    ):
        with pytest.raises(pl.MisconfigurationError, match="middle of an epoch of ParquetDataset"):
            quiet_trainer(max_epochs=2).fit(Reads(), other, ckpt_path=tmp_path / "c.ckpt")


def test_overfitting_reads_in_order(tmp_path: Path) -> None:
    """overfit_batches takes the same first rows in every epoch."""
    module = Reads()
    quiet_trainer(max_epochs=2, overfit_batches=2).fit(module, data(tmp_path, "global"))
    assert module.seen == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


def test_a_dataset_is_not_a_loader(tmp_path: Path) -> None:
    """A data set passed where a loader belongs is refused with the way to make one."""
    with pytest.raises(
        pl.MisconfigurationError, match=r"ParquetDataset\(\.\.\.\)\.loader\(batch_size=\.\.\.\)"
    ):
        quiet_trainer().fit(Reads(), pl.ParquetDataset(parquet(tmp_path / "p", ROWS)))


@pytest.mark.parametrize("kind", ["global", "block", "mapped"])
def test_files_that_change_during_the_run_end_it(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    """With the file's name, in the epoch after the change at the latest; rows that are held stay."""
    monkeypatch.setattr("modules.arrow_tables._LOOK_EVERY_S", 0.0)
    loader = data(tmp_path, kind)

    class Changes(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            for path in tmp_path.rglob("1.*"):
                os.utime(path, (1, 1))

    if kind == "global":
        quiet_trainer(Changes(), max_epochs=2).fit(Reads(), loader)
        return
    with pytest.raises(ValueError, match=r"1\.\w+ changed during the run: it was written again"):
        quiet_trainer(Changes(), max_epochs=2).fit(Reads(), loader)


def test_nan_in_features_ends_the_run_with_its_place(tmp_path: Path) -> None:
    """File, row group, column and row, as raised where the rows were decoded."""
    values = [[float(index)] * FEATURES for index in range(9)]
    values[7][2] = float("nan")
    pq.write_table(pa.table({"id": range(9), "x": values}), tmp_path / "n.parquet", row_group_size=3)
    with pytest.raises(ValueError, match=r"n\.parquet \(row group 2\): Column .x. has 1 NaN, .* row 1"):
        quiet_trainer().fit(Reads(), pl.ParquetDataset(tmp_path).loader(4, shuffle="block"))


def test_how_rows_are_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log tells how a data set is shuffled."""
    with caplog.at_level("INFO", logger="orchestrator"):
        quiet_trainer(max_epochs=1).fit(Reads(), data(tmp_path, "block"))
    assert "train data: ParquetDataset(33 rows of id, x)" in caplog.text
    assert "shuffled in windows of 10 rows" in caplog.text


def test_a_dataloader_over_tensors_trains_as_the_plain_loop(tmp_path: Path) -> None:
    """The batched path gives the weights and the random state of the loop over the DataLoader itself."""
    inputs = torch.randn(33, FEATURES, generator=torch.Generator().manual_seed(4))

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(dropout=0.2)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return sgd(self.parameters())

    module, plain = Module(), Module()
    torch.manual_seed(3)
    quiet_trainer(max_epochs=2).fit(module, DataLoader(TensorDataset(inputs), batch_size=4, shuffle=True))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    optimizer = sgd(plain.parameters())
    loader = DataLoader(TensorDataset(inputs), batch_size=4, shuffle=True)
    for _ in range(2):
        for index, batch in enumerate(loader):
            optimizer.zero_grad()
            plain.training_step(batch, index).backward()
            optimizer.step()
    assert_equal_weights(module, plain)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["block", "mapped"])
def test_a_group_shares_the_order_of_one_process(tmp_path: Path, kind: str) -> None:
    """Two ranks together take rows in the order of one, predict in the files' order, and resume exactly."""
    alone = Reads()
    alone.gathers = lambda batch: True  # type: ignore[method-assign]
    quiet_trainer(max_epochs=1).fit(alone, data(tmp_path, kind))
    module = Reads()
    trainer = group_trainer(tmp_path, max_epochs=2)
    torch.manual_seed(1)
    trainer.fit(module, data(tmp_path, kind), data(tmp_path, kind))
    assert trainer.callback_metrics["mean_id"] == 16
    order = flat(alone.seen)
    for step in range(4):
        here = order[8 * step : 8 * step + 8]
        assert module.seen[step] == here[0::2] + here[1::2]
    predicted = trainer.predict(module, data(tmp_path, kind).in_order())
    assert torch.cat(predicted).tolist() == list(range(33))
    torch.manual_seed(1)
    stopped = group_trainer(tmp_path, max_epochs=2, callbacks=[Stop(7, tmp_path / "c.ckpt")])
    stopped.fit(Reads(), data(tmp_path, kind))
    resumed = Reads()
    group_trainer(tmp_path, max_epochs=2).fit(resumed, data(tmp_path, kind), ckpt_path=tmp_path / "c.ckpt")
    assert_equal_weights(resumed, module)
