"""Train a LightningModule on a laptop, on a Ray cluster, or in a sweep, with one script.

``import orchestrator as pl`` is the only import a user needs. Every public name below is loaded on first
use, so the import itself loads neither torch nor Ray. It fails with one `ImportError` when a folder called
``modules`` or ``cluster`` stands in the way of this project's packages of the same names, or would be hidden
by them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from orchestrator._shadowing import check_for_shadowed_packages

if TYPE_CHECKING:
    from modules.arrow_dataset import ArrowDataset as ArrowDataset
    from modules.arrow_dataset import ParquetDataset as ParquetDataset
    from modules.datamodule import LightningDataModule as LightningDataModule
    from modules.mixture import Mixture as Mixture
    from modules.module import LightningModule as LightningModule
    from modules.packing import PackedTokens as PackedTokens
    from modules.rng import seed_everything as seed_everything
    from modules.text import TextDataset as TextDataset
    from modules.text import Vocabulary as Vocabulary
    from orchestrator import callbacks as callbacks
    from orchestrator import loggers as loggers
    from orchestrator import metrics as metrics
    from orchestrator import plugins as plugins
    from orchestrator import profilers as profilers
    from orchestrator import strategies as strategies
    from orchestrator import tuner as tuner
    from orchestrator import utilities as utilities
    from orchestrator.callbacks.callback import Callback as Callback
    from orchestrator.cli.lightning_cli import LightningCLI as LightningCLI
    from orchestrator.errors import MisconfigurationError as MisconfigurationError
    from orchestrator.lifetime import shutdown as shutdown
    from orchestrator.shared_data import SharedTable as SharedTable
    from orchestrator.stops import Preempted as Preempted
    from orchestrator.sweep.stopped import TrialStopped as TrialStopped
    from orchestrator.sweep.sweep import Sweep as Sweep
    from orchestrator.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOMES = {
    "ArrowDataset": "modules.arrow_dataset",
    "Callback": "orchestrator.callbacks.callback",
    "LightningCLI": "orchestrator.cli.lightning_cli",
    "LightningDataModule": "modules.datamodule",
    "LightningModule": "modules.module",
    "MisconfigurationError": "orchestrator.errors",
    "Mixture": "modules.mixture",
    "PackedTokens": "modules.packing",
    "ParquetDataset": "modules.arrow_dataset",
    "Preempted": "orchestrator.stops",
    "SharedTable": "orchestrator.shared_data",
    "Sweep": "orchestrator.sweep.sweep",
    "TextDataset": "modules.text",
    "Trainer": "orchestrator.trainer",
    "TrialStopped": "orchestrator.sweep.stopped",
    "Vocabulary": "modules.text",
    "seed_everything": "modules.rng",
    "shutdown": "orchestrator.lifetime",
}
_SUBPACKAGES = (
    "callbacks",
    "loggers",
    "metrics",
    "plugins",
    "profilers",
    "strategies",
    "tuner",
    "utilities",
)

__all__ = [
    "ArrowDataset",
    "Callback",
    "LightningCLI",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationError",
    "Mixture",
    "PackedTokens",
    "ParquetDataset",
    "Preempted",
    "SharedTable",
    "Sweep",
    "TextDataset",
    "Trainer",
    "TrialStopped",
    "Vocabulary",
    "callbacks",
    "loggers",
    "metrics",
    "plugins",
    "profilers",
    "seed_everything",
    "shutdown",
    "strategies",
    "tuner",
    "utilities",
]

check_for_shadowed_packages()


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"orchestrator.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(
            f"module 'orchestrator' has no attribute {name!r}. Public names: {', '.join(__all__)}."
        )
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
