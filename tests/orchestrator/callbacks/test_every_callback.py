"""What holds for every ready callback: it loads on first use, pickles, and trains, here and on a group."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator as pl
from orchestrator import callbacks
from orchestrator.loggers import CSVLogger
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import loader, loss_of, network, quiet_trainer

NO_CALLBACKS = {"EarlyStoppingReason", "RichProgressBarTheme", "TrainingSpikeException"}


def say_nothing(*arguments: Any) -> None:
    """A hook."""


class Freezes(callbacks.BaseFinetuning):
    """Freezes the first layer, and thaws it at epoch 1."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


class Counts(callbacks.BasePredictionWriter):
    """Keeps the indices of what it is given."""

    def __init__(self, write_interval: str = "batch_and_epoch") -> None:
        super().__init__(write_interval)
        self.seen: list[Any] = []

    def write_on_batch_end(self, trainer: Any, pl_module: Any, prediction: Any, *rest: Any) -> None:
        self.seen.append(rest[0])


class Whole(pl.LightningModule):
    """A backbone and a head, with everything that a callback asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.1, 4
        net = network()
        self.backbone, self.head = nn.Sequential(net[0], nn.BatchNorm1d(8)), nn.Sequential(*net[1:])

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.head(self.backbone(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = loss_of(self, batch)
        self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", loss_of(self, batch), sync_dist=True)

    def train_dataloader(self) -> Any:
        return loader(16, batch_size=self.batch_size)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([item for item in self.parameters() if item.requires_grad], lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


def samples_of(batch: Any) -> int:
    """Return how many samples a batch has."""
    return len(batch[0])


MAKE: dict[str, Callable[[Path], pl.Callback]] = {
    "BackboneFinetuning": lambda root: callbacks.BackboneFinetuning(1),
    "BaseFinetuning": lambda root: Freezes(),
    "BasePredictionWriter": lambda root: Counts(),
    "BatchSizeFinder": lambda root: callbacks.BatchSizeFinder(max_trials=1, steps_per_trial=1),
    "Callback": lambda root: pl.Callback(),
    "Checkpoint": lambda root: callbacks.Checkpoint(),
    "DeviceStatsMonitor": lambda root: callbacks.DeviceStatsMonitor(),
    "EMAWeightAveraging": lambda root: callbacks.EMAWeightAveraging(decay=0.9),
    "EarlyStopping": lambda root: callbacks.EarlyStopping("val_loss"),
    "GradientAccumulationScheduler": lambda root: callbacks.GradientAccumulationScheduler({1: 2}),
    "GradientHash": lambda root: callbacks.GradientHash(),
    "LambdaCallback": lambda root: callbacks.LambdaCallback(on_train_batch_end=say_nothing),
    "LearningRateFinder": lambda root: callbacks.LearningRateFinder(num_training_steps=20),
    "LearningRateMonitor": lambda root: callbacks.LearningRateMonitor(),
    "ModelCheckpoint": lambda root: callbacks.ModelCheckpoint(root / "saved"),
    "ModelPruning": lambda root: callbacks.ModelPruning("l1_unstructured"),
    "ModelSummary": lambda root: callbacks.ModelSummary(),
    "OnExceptionCheckpoint": lambda root: callbacks.OnExceptionCheckpoint(root / "failed"),
    "ProgressBar": lambda root: callbacks.ProgressBar(),
    "RichModelSummary": lambda root: callbacks.RichModelSummary(),
    "RichProgressBar": lambda root: callbacks.RichProgressBar(),
    "SpikeDetection": lambda root: callbacks.SpikeDetection(exclude_batches_path=root, rtol=1e6),
    "StochasticWeightAveraging": lambda root: callbacks.StochasticWeightAveraging(0.05, 1),
    "TQDMProgressBar": lambda root: callbacks.TQDMProgressBar(),
    "ThroughputMonitor": lambda root: callbacks.ThroughputMonitor(samples_of),
    "Timer": lambda root: callbacks.Timer({"hours": 1}),
    "WeightAveraging": lambda root: callbacks.WeightAveraging(),
}


def test_the_list_of_this_file_is_complete() -> None:
    """Every public callback is among those that are made here."""
    assert set(callbacks.__all__) - NO_CALLBACKS == MAKE.keys()


def test_the_package_is_cheap_to_import() -> None:
    """Importing it loads neither torch nor a callback; an unknown name is an AttributeError."""
    program = (
        "import sys, orchestrator.callbacks as c\n"
        "assert 'torch' not in sys.modules and 'orchestrator.callbacks.timer' not in sys.modules\n"
        "c.Timer\n"
        "assert 'orchestrator.callbacks.timer' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(callbacks.__file__).parents[2])
    with pytest.raises(AttributeError, match=r"Public names: .*Timer"):
        _ = callbacks.Timers


@pytest.mark.parametrize("name", MAKE)
def test_each_trains_alone(name: str, tmp_path: Path) -> None:
    """A pickled copy trains two epochs, and pickles again afterwards."""
    callback = pickle.loads(pickle.dumps(MAKE[name](tmp_path)))
    trainer = quiet_trainer(
        callback,
        max_epochs=2,
        logger=CSVLogger(tmp_path / "logs"),
        enable_checkpointing=isinstance(callback, callbacks.Checkpoint),
        enable_progress_bar=isinstance(callback, callbacks.ProgressBar),
        enable_model_summary=isinstance(callback, callbacks.ModelSummary),
        default_root_dir=tmp_path,
        log_every_n_steps=2,
    )
    trainer.fit(Whole(), val_dataloaders=loader(8))
    assert trainer.global_step >= 6
    assert type(pickle.loads(pickle.dumps(callback))) is type(callback)


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_all_train_together_on_a_group(tmp_path: Path) -> None:
    """Two ranks with unequal ends train with all callbacks at once, and the driver's objects know."""
    several_of_a_kind = {
        *("StochasticWeightAveraging", "WeightAveraging", "BaseFinetuning", "RichModelSummary"),
        *("ProgressBar", "TQDMProgressBar", "BatchSizeFinder", "LearningRateFinder"),
    }
    made = {name: make(tmp_path) for name, make in MAKE.items() if name not in several_of_a_kind}
    trainer = group_trainer(
        tmp_path,
        callbacks=list(made.values()),
        enable_checkpointing=True,
        enable_progress_bar=True,
        enable_model_summary=True,
        logger=CSVLogger(tmp_path / "logs"),
        log_every_n_steps=2,
    )
    module = Whole()
    trainer.fit(module, loader(36), loader(8))
    assert trainer.current_epoch == 2
    assert len(made["LearningRateMonitor"].lrs) == 3  # type: ignore[attr-defined]
    assert made["Timer"].time_elapsed() > 0  # type: ignore[attr-defined]
    assert made["EMAWeightAveraging"]._latest_update_step == trainer.global_step  # type: ignore[attr-defined]
    assert sum((item == 0).sum().item() for item in module.parameters()) > 10
    assert Path(made["ModelCheckpoint"].best_model_path).is_file()  # type: ignore[attr-defined]
