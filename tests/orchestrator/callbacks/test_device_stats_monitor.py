"""DeviceStatsMonitor: what is logged, when, and what it costs otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.callbacks import DeviceStatsMonitor
from orchestrator.callbacks.device_stats_monitor import device_stats
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.callbacks.test_learning_rate_monitor import Rows
from tests.orchestrator.tiny import Tiny, Validated, loader, quiet_trainer

CPU = ["cpu_percent", "cpu_swap_percent", "cpu_vm_percent"]


@pytest.mark.parametrize("cpu_stats", [True, None])
def test_the_processor_is_logged_at_log_points(tmp_path: Path, cpu_stats: bool | None) -> None:
    """Load and memory are logged before and after the batch of a log point, named after the hook."""
    logger = Rows(tmp_path)
    trainer = quiet_trainer(DeviceStatsMonitor(cpu_stats), logger=logger, log_every_n_steps=2)
    trainer.fit(Validated(), loader(20), loader(8))
    hooks = [
        (step, next(iter(metrics)).partition("/")[0].removeprefix("DeviceStatsMonitor."))
        for step, metrics in logger.rows
        if "val_loss" not in metrics
    ]
    batch = ["on_train_batch_start", "on_train_batch_end"]
    assert hooks == [
        *((1, hook) for hook in batch),
        *((3, hook) for hook in batch),
        (5, "on_validation_batch_start"),
        (5, "on_validation_batch_end"),
    ]
    assert sorted(name.partition("/")[2] for name in logger.rows[0][1]) == CPU


def test_it_can_be_told_to_leave_the_processor_out(tmp_path: Path) -> None:
    """With cpu_stats=False nothing is logged on the CPU."""
    logger = Rows(tmp_path)
    quiet_trainer(DeviceStatsMonitor(False), logger=logger, log_every_n_steps=1).fit(Tiny(), loader(8))
    assert logger.rows == []


def test_what_cannot_be_logged_is_refused() -> None:
    """A Trainer without a logger, and a value that is no switch, are errors."""
    with pytest.raises(MisconfigurationError, match="nothing to log to"):
        quiet_trainer(DeviceStatsMonitor()).fit(Tiny(), loader(4))
    with pytest.raises(MisconfigurationError, match="cpu_stats='yes'"):
        DeviceStatsMonitor("yes")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_tells_of_its_memory() -> None:
    """The allocator's counters are there, as numbers."""
    stats = device_stats(torch.device("cuda", 0))
    assert stats["allocated_bytes.all.current"] >= 0
