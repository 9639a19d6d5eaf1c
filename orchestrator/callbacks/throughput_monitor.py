"""Logs how much training and evaluation get through: samples, tokens, operations a second, and MFU.

It reads the host's clock after each batch and nothing from the device, so no step waits for it; over a window
of many batches that is the device's pace, because the host cannot run ahead of it for long. Values go to the
loggers at log points, with a prefix for the stage, and are rank 0's: global rates are its own times the
number of ranks. Without a logger there is nothing to do, and nothing is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.callbacks.callback import Callback
from orchestrator.device_peaks import available_flops
from orchestrator.errors import MisconfigurationError
from orchestrator.throughput import Throughput

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


class ThroughputMonitor(Callback):
    """Logs ``train/device/samples_per_sec`` and the like, and for the other stages likewise.

    Operations are counted where the module has ``flops_per_batch``, which `measure_flops` gives. With them
    comes ``device/mfu``: the share of what the device can do at most, where that is known.

    Args:
        batch_size_fn: Returns the number of samples of a batch.
        length_fn: Returns the number of items of a batch, tokens say; adds ``items_per_sec``.
        available_flops: Operations a second that the device can do at most; looked up for common GPUs when
            None.
        window_size: Batches that a rate looks back on.
        separator: What stands between the parts of a name.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int],
        length_fn: Callable[[Any], int] | None = None,
        *,
        available_flops: float | None = None,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        for name, function in (("batch_size_fn", batch_size_fn), ("length_fn", length_fn)):
            if not callable(function) and not (function is None and name == "length_fn"):
                raise MisconfigurationError(
                    f"ThroughputMonitor({name}={function!r}). Use a function of a batch that "
                    "returns a number."
                )
        try:
            Throughput(available_flops, window_size=window_size)
        except ValueError as error:
            raise MisconfigurationError(str(error).replace("Throughput(", "ThroughputMonitor(")) from None
        self.batch_size_fn = batch_size_fn
        self.length_fn = length_fn
        self.available_flops = available_flops
        self.window_size = window_size
        self.separator = separator
        self._active = True
        self._stages: dict[str, _Stage] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to count anew; find out what the device can do."""
        self._active = bool(trainer.loggers) and trainer.is_global_zero
        self._stages = {}
        if not self._active or trainer.engine is None:
            return
        peak = self.available_flops
        if peak is None:
            peak = available_flops(trainer.engine.place.device, trainer.precision)
        for name in ("train", "validate", "test", "predict"):
            rates = Throughput(peak, trainer.world_size, self.window_size, self.separator)
            self._stages[name] = _Stage(rates)

    # ---------------------------------------------------------------- hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("train")
        if self._active:
            self._stages["train"].logged_at = trainer.state.windows

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch, and log at log points."""
        if not self._active:
            return
        self._count("train", pl_module, batch)
        step = trainer.state.windows
        stage = self._stages["train"]
        if step % trainer.log_every_n_steps == 0 and step != stage.logged_at:
            stage.logged_at = step
            self._log(trainer, "train", step - 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of validation, and stop that of training."""
        if not trainer.sanity_checking:
            self._start("validate")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        if not trainer.sanity_checking:
            self._count_evaluation(trainer, "validate", pl_module, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time of validation out of training's."""
        if self._active and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stages["train"].paused_s += time.monotonic() - self._stages["validate"].started_s

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("test")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        self._count_evaluation(trainer, "test", pl_module, batch)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("predict")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        self._count_evaluation(trainer, "predict", pl_module, batch)

    # ---------------------------------------------------------------- counting

    def _start(self, name: str) -> None:
        if self._active:
            self._stages[name].start()

    def _count_evaluation(self, trainer: Trainer, name: str, module: LightningModule, batch: Any) -> None:
        if not self._active:
            return
        self._count(name, module, batch)
        batches = self._stages[name].batches
        if batches % trainer.log_every_n_steps == 0:
            self._log(trainer, name, batches)

    def _count(self, name: str, module: LightningModule, batch: Any) -> None:
        stage = self._stages[name]
        stage.batches += 1
        stage.samples += self.batch_size_fn(batch)
        if self.length_fn is not None:
            stage.lengths += self.length_fn(batch)
        flops = getattr(module, "flops_per_batch", None)
        stage.rates.update(
            time=time.monotonic() - stage.began_s - stage.paused_s,
            batches=stage.batches,
            samples=stage.samples,
            lengths=None if self.length_fn is None else stage.lengths,
            flops=None if flops is None else int(flops),
        )

    def _log(self, trainer: Trainer, name: str, step: int) -> None:
        values = self._stages[name].rates.compute()
        metrics = {f"{name}{self.separator}{key}": value for key, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)


class _Stage:
    """What one stage has counted: totals since its clock was first started."""

    def __init__(self, rates: Throughput) -> None:
        self.rates = rates
        self.batches = 0
        self.samples = 0
        self.lengths = 0
        self.began_s = self.started_s = time.monotonic()
        self.paused_s = 0.0
        self.logged_at = 0

    def start(self) -> None:
        """Start the clock anew; totals of time go on where the last update left off."""
        now, counted_s = time.monotonic(), self.rates.elapsed_s
        self.started_s = now
        self.began_s = now - counted_s
        self.paused_s = 0.0
