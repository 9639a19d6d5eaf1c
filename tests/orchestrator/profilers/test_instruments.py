"""What a run with a profiler measures, that it computes the same, and that it leaves nothing behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.profilers import PassThroughProfiler, SimpleProfiler
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, Validated, assert_equal_weights, loader, loss_of, quiet_trainer


class Watches(pl.Callback):
    """Overrides one hook."""

    def on_train_batch_end(self, *args: Any) -> None:
        """Do nothing."""


class Marks(Validated):
    """Measures something of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with self.trainer.profiler.profile("my part"):
            return super().training_step(batch, batch_idx)


def test_everything_that_a_run_calls_is_measured() -> None:
    """Steps, backward, optimizer, data, evaluation, hooks and the user's own parts have their durations."""
    profiler = SimpleProfiler()
    trainer = quiet_trainer(Watches(), profiler=profiler)
    trainer.fit(Marks(), loader(16), loader(8))
    counts = {name: len(durations) for name, durations in profiler.recorded_durations.items()}
    assert counts == {
        "train_data_next": 4 + 1,  # each loader is read to its end
        "training_step": 4,
        "my part": 4,
        "optimizer_zero_grad": 4,
        "backward": 4,
        "optimizer_step": 4,
        "[Callback]Watches.on_train_batch_end": 4,
        "run_evaluation": 1,
        "val_data_next": 2 + 1,
        "validation_step": 2,
        "reduce_metrics": 2,
        "log_epoch": 2,
    }


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_is_measured(stage: str) -> None:
    """Calls other than fit have their steps and data measured too, anew each."""
    profiler = SimpleProfiler()
    trainer = quiet_trainer(profiler=profiler)
    for _ in range(2):
        getattr(trainer, stage)(Validated(), loader(8))
    name = {"validate": "validation_step"}.get(stage, f"{stage}_step")
    assert len(profiler.recorded_durations[name]) == 2


@pytest.mark.parametrize("name", ["simple", "advanced", "pytorch"])
def test_a_profiled_run_computes_the_same(name: str, tmp_path: Path) -> None:
    """Weights are equal to the bit to those of a run without, and module and optimizer are as before."""

    def trained(profiler: str | None) -> Tiny:
        torch.manual_seed(1)
        module = Tiny(dropout=0.5)
        trainer = quiet_trainer(profiler=profiler, default_root_dir=tmp_path, accumulate_grad_batches=2)
        trainer.fit(module, loader(24))
        assert {"step", "zero_grad"} & vars(trainer.optimizers[0]).keys() == set()
        assert {"training_step", "backward", "predict_step"} & vars(module).keys() == set()
        assert "save_checkpoint" not in vars(trainer)
        return module

    assert_equal_weights(trained(None), trained(name))


def test_a_failed_run_gives_back_everything(caplog: pytest.LogCaptureFixture) -> None:
    """After an exception the module's own methods are back, and what was measured is reported."""

    class Fails(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise KeyError("mine")

    module = Fails()
    with caplog.at_level(logging.INFO, "orchestrator"), pytest.raises(KeyError, match="mine"):
        quiet_trainer(profiler="simple").fit(module, loader(8))
    assert "training_step" not in vars(module)
    assert any("training_step" in record.getMessage() for record in caplog.records)


class StepsItself(Tiny):
    """Optimises by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.manual_backward(loss_of(self.net, batch))
        optimizer.step()
        optimizer.zero_grad()


def test_steps_by_hand_are_measured() -> None:
    """A module that steps its optimizer itself has those steps in the profile."""
    profiler = SimpleProfiler()
    quiet_trainer(profiler=profiler, max_epochs=1).fit(StepsItself(), loader(8))
    batches = len(profiler.recorded_durations["training_step"])
    assert batches > 0
    assert len(profiler.recorded_durations["optimizer_step"]) == batches
    assert len(profiler.recorded_durations["optimizer_zero_grad"]) == batches


def test_without_a_profiler_nothing_is_touched() -> None:
    """The trainer then has a profiler that does nothing, users may use it, and no engine has instruments."""
    trainer = quiet_trainer()
    assert type(trainer.profiler) is PassThroughProfiler
    trainer.fit(Marks(), loader(8))
    assert trainer.engine is not None
    assert trainer.engine.instruments is None


@pytest.mark.ray
def test_each_rank_reports_and_rank_0s_durations_come_home(tmp_path: Path) -> None:
    """On two ranks there are two reports, and the driver's profiler holds what rank 0 has measured."""
    profiler = SimpleProfiler(tmp_path / "profiles", "times")
    trainer = group_trainer(tmp_path, profiler=profiler, max_epochs=1)
    trainer.fit(Net(), group_loader(32))
    assert sorted(path.name for path in (tmp_path / "profiles").iterdir()) == [
        "fit-times-0.txt",
        "fit-times-1.txt",
    ]
    assert trainer.profiler is profiler
    assert len(profiler.recorded_durations["training_step"]) == 2
