"""Log what the device and the processor are doing: memory, load, temperature where there is one.

Statistics are taken before and after a batch, at log points only; the other batches cost one comparison.
CUDA's memory statistics are the allocator's own counters, so reading them waits for nothing. Rank 0 logs its
own device. A Trainer without a logger raises `MisconfigurationError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


class DeviceStatsMonitor(Callback):
    """Logs ``DeviceStatsMonitor.on_train_batch_start/cpu_percent`` and the like.

    Args:
        cpu_stats: Log the processor's load and the machine's memory. None does so when training on the CPU.

    Raises:
        MisconfigurationError: `cpu_stats` is neither True, False nor None.
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        if cpu_stats not in (True, False, None):
            raise MisconfigurationError(
                f"DeviceStatsMonitor(cpu_stats={cpu_stats!r}). Use True, False, or None to decide by the "
                "device."
            )
        self.cpu_stats = cpu_stats
        self._every = 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer without a logger, and begin to measure the load."""
        if stage != "predict" and not trainer.loggers:
            raise MisconfigurationError(
                "DeviceStatsMonitor has nothing to log to: Trainer(logger=False). Give a logger, or leave "
                "the "
                "callback out."
            )
        self._every = trainer.log_every_n_steps
        device_stats(torch.device("cpu"))  # the first load that psutil tells is meaningless

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log before the step of a log point."""
        if (trainer.state.windows + 1) % self._every == 0:
            self._log(trainer, "on_train_batch_start", trainer.state.windows)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after the step of a log point."""
        if trainer.state.windows % self._every == 0:
            self._log(trainer, "on_train_batch_end", max(0, trainer.state.windows - 1))

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log before a validation batch."""
        if (batch_idx + 1) % self._every == 0 and not trainer.sanity_checking:
            self._log(trainer, "on_validation_batch_start", trainer.state.windows)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log after a validation batch."""
        if (batch_idx + 1) % self._every == 0 and not trainer.sanity_checking:
            self._log(trainer, "on_validation_batch_end", trainer.state.windows)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log before a test batch."""
        if (batch_idx + 1) % self._every == 0:
            self._log(trainer, "on_test_batch_start", batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log after a test batch."""
        if (batch_idx + 1) % self._every == 0:
            self._log(trainer, "on_test_batch_end", batch_idx)

    def _log(self, trainer: Trainer, hook: str, step: int) -> None:
        if not trainer.is_global_zero or trainer.strategy is None:
            return
        device = trainer.strategy.device
        stats = device_stats(device)
        if self.cpu_stats and device.type != "cpu":
            stats.update(device_stats(torch.device("cpu")))
        elif self.cpu_stats is False and device.type == "cpu":
            return
        separator = trainer.loggers[0].group_separator
        metrics = {
            f"{type(self).__qualname__}.{hook}{separator}{name}": value for name, value in stats.items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)


def device_stats(device: torch.device) -> dict[str, float]:
    """Return what is known of `device` now: percentages of a CPU and its memory; counts and bytes of CUDA's
    allocator.
    """
    if device.type == "cuda":
        return {name: float(value) for name, value in torch.cuda.memory_stats(device).items()}
    import psutil

    return {
        "cpu_percent": psutil.cpu_percent(),
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_swap_percent": psutil.swap_memory().percent,
    }
