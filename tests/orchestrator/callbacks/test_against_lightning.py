"""The same run under Lightning leaves the same checkpoints and stops at the same epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import orchestrator as pl
from orchestrator.callbacks import EarlyStopping, ModelCheckpoint

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]

NAN = float("nan")


@pytest.fixture(scope="module")
def lightning() -> Iterator[Any]:
    """Lightning's package, silent."""
    package = pytest.importorskip("lightning.pytorch")
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    yield package
    log.setLevel(level)


def run(package: Any, callback: Any, values: list[float], **arguments: Any) -> Any:
    """Train an epoch of four batches for each value of ``v``, and return the trainer."""

    class Model(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.layer(batch).mean()  # type: ignore[no-any-return]

        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            self.log("v", values[self.current_epoch])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    given: dict[str, Any] = {"max_epochs": len(values), "accelerator": "cpu", "logger": False, **arguments}
    saves = isinstance(callback, package.callbacks.ModelCheckpoint)
    trainer = package.Trainer(
        callbacks=[callback], enable_progress_bar=False, enable_checkpointing=saves, **given
    )
    data: Any = torch.ones(8, 2)
    trainer.fit(Model(), DataLoader(data, batch_size=2), DataLoader(data, batch_size=4))
    return trainer


def found(callback: Any, directory: Path) -> dict[str, Any]:
    """Return the steps of the files, and what the callback says of them."""
    steps = {
        path.name: torch.load(path, weights_only=False)["global_step"] for path in directory.glob("*.ckpt")
    }
    score = callback.best_model_score
    return {
        "files": steps,
        "best": Path(callback.best_model_path).name,
        "kth": Path(callback.kth_best_model_path).name,
        "last": Path(callback.last_model_path).name,
        "score": None if score is None else float(score),
    }


@pytest.mark.parametrize("values", [[3, 2, 1], [1, 2, 3], [2, 2, 2, 1], [NAN, 2, 1], [2, NAN, 1, NAN]])
@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ({}, {}),
        ({"monitor": "v"}, {}),
        ({"monitor": "v", "mode": "max", "save_top_k": 2}, {}),
        ({"monitor": "v", "save_top_k": 2, "filename": "same"}, {}),
        ({"monitor": "v", "save_top_k": -1, "filename": "{epoch:02d}-{v:.1f}-{none}"}, {}),
        ({"monitor": "v", "save_top_k": 2, "auto_insert_metric_name": False, "filename": "e{epoch}"}, {}),
        ({"monitor": "v", "save_last": "link"}, {}),
        ({"every_n_epochs": 2, "save_top_k": -1, "save_last": True}, {}),
        ({"every_n_train_steps": 3, "save_top_k": -1}, {}),
        ({"every_n_train_steps": 3, "save_last": True}, {}),
        ({"every_n_train_steps": 2, "save_top_k": -1}, {"accumulate_grad_batches": 2}),
        ({"monitor": "v", "save_top_k": -1}, {"val_check_interval": 0.5}),
        ({"monitor": "v", "save_top_k": 2}, {"check_val_every_n_epoch": 2}),
        ({"save_top_k": -1, "save_on_train_epoch_end": False}, {}),
        ({"monitor": "v", "enable_version_counter": False, "filename": "same", "save_top_k": 2}, {}),
        ({"save_weights_only": True, "save_last": True}, {}),
        ({"save_top_k": 0, "save_last": True}, {}),
        ({"every_n_epochs": 2, "monitor": "v", "save_on_train_epoch_end": True}, {"val_check_interval": 2}),
    ],
)
def test_checkpoints_are_lightnings(
    lightning: Any, tmp_path: Path, values: list[float], arguments: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Files, their steps, and the best, worst and last of them are the same."""
    outcomes = []
    for package, kind in ((lightning, lightning.callbacks.ModelCheckpoint), (pl, ModelCheckpoint)):
        directory = tmp_path / package.__name__
        callback = kind(directory, **arguments)
        run(package, callback, values, **changes)
        outcomes.append(found(callback, directory))
    assert outcomes[1] == outcomes[0]


@pytest.mark.parametrize(
    "values", [[3, 2, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6], [5, 4, NAN, 3, 2, 1], [3, 1, 2, 1.5, 0, 0]]
)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"patience": 1, "mode": "max"},
        {"patience": 2, "min_delta": 0.6},
        {"check_finite": False, "patience": 2},
        {"stopping_threshold": 1.2},
        {"divergence_threshold": 3.5, "patience": 9},
        {"mode": "max", "divergence_threshold": 1.5, "patience": 9},
    ],
)
def test_training_stops_where_lightning_stops(
    lightning: Any, tmp_path: Path, values: list[float], arguments: dict[str, Any]
) -> None:
    """The number of epochs, the reason, the wait and the best score are the same."""
    outcomes = []
    for package, kind in ((lightning, lightning.callbacks.EarlyStopping), (pl, EarlyStopping)):
        callback: Any = kind("v", **arguments)
        trainer = run(package, callback, values, default_root_dir=tmp_path)
        counts = (trainer.current_epoch, callback.stopped_epoch, callback.wait_count)
        outcomes.append((*counts, callback.stopping_reason.name, float(callback.best_score)))
    assert outcomes[1] == outcomes[0]
