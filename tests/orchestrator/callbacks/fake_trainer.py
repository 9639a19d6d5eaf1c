"""Stands in for the Trainer where callbacks are tested alone: it has what they read and writes small
files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from orchestrator.callbacks import Callback
from orchestrator.loggers import Logger
from orchestrator.plugins import Plugins


class FakeTrainer:
    """Runs the hooks of one callback as the Trainer would, with metrics and counters set by the test."""

    def __init__(self, root: Path, *callbacks: Callback, **changes: Any) -> None:
        self.default_root_dir = str(root)
        self.callbacks = list(callbacks)
        self.loggers: list[Logger] = []
        self.metrics: dict[str, float] = {}
        self.current_epoch = 0
        self.global_step = 0
        self.plugins = Plugins()
        self.global_rank = 0
        self.world_size = 1
        self.strategy: Any = None
        self.sanity_checking = False
        self.fast_dev_run = False
        self.should_stop = False
        self.val_check_interval: Any = 1.0
        self.check_val_every_n_epoch: int | None = 1
        self.num_val_batches = [2]
        self.num_training_batches: float = 4
        self.ckpt_path: str | None = None
        self.state = SimpleNamespace(fn="fit", past_batches=0)
        self.engine = SimpleNamespace(feed=SimpleNamespace(is_last=False))
        self.plugins = SimpleNamespace(checkpoint_io=None)
        self.saved: list[str] = []
        self.fails = False
        for name, value in changes.items():
            setattr(self, name, value)

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.global_rank == 0

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """The metrics as the Trainer gives them."""
        return {name: torch.tensor(value) for name, value in self.metrics.items()}

    def save_checkpoint(
        self, path: str, weights_only: bool = False, *, on_written: Callable[[], None] | None = None
    ) -> None:
        """Write the step and the callbacks' states, on rank 0, at once."""
        if self.fails:
            raise OSError("disk full")
        self.saved.append(path)
        if self.is_global_zero:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            states = [str(sorted(callback.state_dict())) for callback in self.callbacks]
            content = {"step": self.global_step, "weights_only": weights_only, "states": states}
            unfinished = Path(
                f"{path}.tmp"
            )  # replaces the file as the real one does: it may have a second name
            unfinished.write_text(json.dumps(content))
            unfinished.replace(path)
            if on_written is not None:
                on_written()

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of each callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, None, *arguments)

    def start(self) -> None:
        """Run what comes before the first epoch, with a sanity check."""
        self.call("setup", "fit")
        self.sanity_checking = True
        self.call("on_validation_end")
        self.sanity_checking = False
        self.call("on_train_start")

    def batch(self, batch_idx: int, steps: int = 1) -> None:
        """Run one batch that makes `steps` optimizer steps."""
        self.global_step += steps
        self.engine.feed.is_last = batch_idx + 1 == self.num_training_batches
        self.call("on_train_batch_end", None, None, batch_idx)

    def validate(self, **metrics: float) -> None:
        """Run a validation that logs `metrics`."""
        self.metrics |= metrics
        self.call("on_validation_end")

    def epoch(self, batches: int = 4, **metrics: float) -> None:
        """Run an epoch of `batches` steps with a validation at its end."""
        for batch_idx in range(batches):
            self.batch(batch_idx)
        if sum(self.num_val_batches):
            self.validate(**metrics)
        else:
            self.metrics |= metrics
        self.call("on_train_epoch_end")
        self.current_epoch += 1

    def end(self) -> None:
        """Run what comes after the last epoch."""
        self.call("on_train_end")


def fit(root: Path, values: list[float], checkpoint: Callback, **changes: Any) -> FakeTrainer:
    """Train an epoch for each value of the metric ``v``."""
    trainer = FakeTrainer(root, checkpoint, **changes)
    trainer.start()
    for value in values:
        trainer.epoch(v=value)
    trainer.end()
    return trainer


def steps_saved(directory: Path) -> dict[str, int]:
    """Return the step in each checkpoint of `directory`, by file name."""
    return {path.name: int(json.loads(path.read_text())["step"]) for path in sorted(directory.iterdir())}
