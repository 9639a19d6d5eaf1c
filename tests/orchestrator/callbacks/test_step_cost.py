"""What the callbacks that everybody has cost in each training step, counted in calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.callbacks import EarlyStopping, ModelCheckpoint
from tests.orchestrator.test_budget import Line, calls_per_step, data
from tests.orchestrator.tiny import quiet_trainer


class LogsAnEpoch(Line):
    """Logs ``v`` once, at the end of the epoch."""

    def on_train_epoch_end(self) -> None:
        self.log("v", 1.0)


def cost(root: Path, *callbacks: Any, **arguments: Any) -> int:
    """The calls of one step, with `callbacks` made anew for each run, in a directory of its own."""
    runs = iter(range(100))

    def run(steps: int) -> None:
        directory = root / str(next(runs))
        made = [make(directory) for make in callbacks]
        quiet_trainer(*made, default_root_dir=directory, log_every_n_steps=10**9, **arguments).fit(
            LogsAnEpoch(), data(steps)
        )

    return calls_per_step(run)


def test_the_default_checkpointing_costs_a_step_nothing(tmp_path: Path) -> None:
    """A Trainer that saves at the end of each epoch, as by default, makes no more calls a step than one that
    saves nothing."""
    without = cost(tmp_path / "without")
    assert (
        cost(tmp_path / "with", enable_checkpointing=True) < without + 1
    )  # a save is not the same to the call
    assert len(list((tmp_path / "with").rglob("*.ckpt"))) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda directory: ModelCheckpoint(directory, monitor="v", save_top_k=2, save_last=True),
        lambda directory: ModelCheckpoint(directory, every_n_epochs=0),
        lambda directory: EarlyStopping("v"),
    ],
    ids=["best", "none", "stopping"],
)
def test_what_acts_between_epochs_costs_a_step_nothing(tmp_path: Path, make: Any) -> None:
    """Callbacks that act at the ends of epochs and validations add no call to a step."""
    saves = isinstance(make(tmp_path), ModelCheckpoint)
    with_callback = cost(tmp_path / "with", make, enable_checkpointing=saves)
    assert with_callback < cost(tmp_path / "without") + 1
