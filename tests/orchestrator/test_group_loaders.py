"""Several loaders, and loaders of every kind, shared by the ranks of a group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import orchestrator as pl
from orchestrator.utilities import CombinedLoader
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import assert_equal_weights

pytestmark = pytest.mark.ray


class Ids(torch.utils.data.Dataset[Any]):
    """Sample i is its number and some noise."""

    def __init__(self, length: int, start: int = 0) -> None:
        self.length = length
        self.start = start

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.start + index, torch.rand(())


class Stream(IterableDataset[Any]):
    """Five numbers from 100."""

    def __iter__(self) -> Iterator[Any]:
        return iter((100 + index, torch.rand(())) for index in range(5))


class Counting:
    """A loader of batches of one that says where it stands."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.place = 0
        self.loaded: int | None = None

    def __iter__(self) -> Iterator[Any]:
        while self.place < self.length:
            self.place += 1
            yield torch.tensor([self.place]), torch.tensor([0.5])
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = self.loaded = state["place"]


class Notes(pl.LightningModule):
    """Learns from the noise of all parts of a batch, and at the end holds what every rank has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.ids: list[Any] = []
        self.by_rank: list[Any] = []
        self.order = ""
        self.estimate: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.ids.append({key: item and item[0].tolist() for key, item in batch.items()})
        self.order += "t"
        noise = torch.cat([item[1] for item in batch.values() if item is not None])
        return (self.weight * noise.float()).mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("ids", batch[0].float().mean(), batch_size=len(batch[0]), sync_dist=True)

    def on_validation_start(self) -> None:
        self.order += "v"

    def on_train_end(self) -> None:
        self.by_rank = self.trainer.strategy.gather((self.ids, self.order))

    def configure_optimizers(self) -> Any:
        self.estimate = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SavesAt(pl.Callback):
    """Saves after a step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = str(path)
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_several_loaders_are_shared_and_resumed(tmp_path: Path) -> None:
    """Each is dealt to the ranks; the longest comes once, the shorter go round; a resume is exact; ends are
    uneven."""

    def fit(module: Notes, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        data = {
            "short": DataLoader(Ids(5), batch_size=1, shuffle=True),
            "long": DataLoader(Ids(27, 50), batch_size=2, shuffle=True),
        }
        trainer = group_trainer(tmp_path, callbacks=list(callbacks), max_epochs=2)
        validation = {"x": DataLoader(Ids(5), batch_size=2), "y": DataLoader(Ids(1, 9), batch_size=2)}
        trainer.fit(module, data, validation, **options)
        return trainer

    file = tmp_path / "middle.ckpt"
    pl.seed_everything(2, verbose=False)
    whole = Notes()
    trainer = fit(whole, SavesAt(file, 11))
    assert trainer.num_training_batches == 7
    assert trainer.num_val_batches == [2, 1]
    assert (whole.estimate, trainer.global_step, trainer.estimated_stepping_batches) == (14, 14, 14)
    ids = [seen for seen, _ in whole.by_rank]
    for epoch in (slice(0, 7), slice(7, 14)):
        rows = [row for seen in ids for row in seen[epoch]]
        assert sorted(item for row in rows for item in row["long"]) == list(range(50, 77))
    # One rank has 3 samples of the short loader, the other 2, and each goes round its own.
    short = [[row["short"][0] for row in seen[:7]] for seen in ids]
    assert sorted(short[0][:3] + short[1][:2]) == list(range(5))
    assert (short[0][3:6], short[1][2:4]) == (short[0][:3], short[1][:2])
    assert trainer.samples_seen == 2 * (27 + 14)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics == {"ids/dataloader_idx_0": 2.0, "ids/dataloader_idx_1": 9.0}

    rest = Notes()
    again = fit(rest, ckpt_path=file)
    assert_equal_weights(rest, whole)
    assert [seen for seen, _ in rest.by_rank] == [seen[11:] for seen in ids]
    assert again.samples_seen == trainer.samples_seen


def test_open_ends_own_states_and_rank_0s_clock(tmp_path: Path) -> None:
    """Loaders without lengths end together; stateful ones go on by each rank's own state; validation that
    goes by the time runs on all ranks at the same log points."""

    def fit(module: Notes, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        data = {"own": Counting(9), "stream": DataLoader(Stream(), batch_size=1)}
        trainer = group_trainer(
            tmp_path,
            callbacks=list(callbacks),
            max_epochs=1,
            log_every_n_steps=2,
            val_check_interval={"microseconds": 1},
            join_uneven=True,
        )
        trainer.fit(module, CombinedLoader(data, "max_size"), DataLoader(Ids(3)), **options)
        return trainer

    file = tmp_path / "middle.ckpt"
    pl.seed_everything(2, verbose=False)
    whole = Notes()
    trainer = fit(whole, SavesAt(file, 3))
    assert [seen for seen, _ in whole.by_rank] == [
        [{"own": [2 * i + 1], "stream": [100 + 2 * i] if i < 3 else None} for i in range(5)],
        [{"own": [2 * i + 2], "stream": [101 + 2 * i] if i < 2 else None} for i in range(4)],
    ]
    assert [order for _, order in whole.by_rank] == ["ttvttvt", "ttvttv"]
    assert whole.estimate == trainer.num_training_batches == float("inf")
    states = [
        rank["reading"]["own"]["members"][0]["own"]
        for rank in torch.load(file, weights_only=True)["orchestrator"]["ranks"]
    ]
    assert states == [{"state": {"place": 5}}, {"state": {"place": 6}}]

    rest = Notes()
    again = fit(rest, ckpt_path=file)
    assert [seen for seen, _ in rest.by_rank] == [seen[3:] for seen, _ in whole.by_rank]
    assert_equal_weights(rest, whole)
    assert again.samples_seen == trainer.samples_seen == 9 + 5

    class Together(Notes):
        def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            parts = torch.cat([item[0] for item in batch.values() if item is not None])
            self.log("sum", parts.float().sum(), sync_dist=True, reduce_fx="sum")

    together = CombinedLoader(
        {"a": DataLoader(Ids(7), batch_size=2), "b": DataLoader(Ids(3, 100), batch_size=2)}, "max_size"
    )
    assert trainer.validate(Together(), together, verbose=False) == [{"sum": 21 + 303}]
    assert trainer.num_val_batches == [2]


def test_overfitting_and_reloading_with_data_of_hooks(tmp_path: Path) -> None:
    """On a group shuffling is off too, loaders are asked for anew by every rank, and generators may come
    from a hook."""

    class Hooks(Notes):
        def train_dataloader(self) -> Any:
            self.order += "L"
            return {"a": DataLoader(Ids(12, 100 * self.trainer.current_epoch), batch_size=2, shuffle=True)}

        def val_dataloader(self) -> Any:
            return ((torch.tensor([index]), torch.zeros(1)) for index in range(6))

    module = Hooks()
    trainer = group_trainer(tmp_path, max_epochs=3, overfit_batches=2, reload_dataloaders_every_n_epochs=1)
    trainer.fit(module)
    first = [[{"a": [0, 2]}, {"a": [4, 6]}], [{"a": [1, 3]}, {"a": [5, 7]}]]
    shifted = [
        [{"a": [100 * epoch + item for item in row["a"]]} for epoch in range(3) for row in rows]
        for rows in first
    ]
    assert [seen for seen, _ in module.by_rank] == shifted
    assert [order for _, order in module.by_rank] == ["LttvLttvLttv"] * 2
    assert (trainer.num_training_batches, trainer.num_val_batches) == (2, [2])
