"""Loggers: where a run's numbers and hyperparameters go.

Those that need a package which only an extra installs are loaded on first use, like the package itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from orchestrator.loggers.csv import CSVLogger
from orchestrator.loggers.dummy import DummyLogger
from orchestrator.loggers.logger import Logger
from orchestrator.loggers.tensorboard import TensorBoardLogger

if TYPE_CHECKING:
    from orchestrator.loggers.comet import CometLogger
    from orchestrator.loggers.mlflow import MLFlowLogger
    from orchestrator.loggers.neptune import NeptuneLogger
    from orchestrator.loggers.wandb import WandbLogger

__all__ = [
    "CSVLogger",
    "CometLogger",
    "DummyLogger",
    "Logger",
    "MLFlowLogger",
    "NeptuneLogger",
    "TensorBoardLogger",
    "WandbLogger",
]

_HOMES = {
    "CometLogger": "orchestrator.loggers.comet",
    "MLFlowLogger": "orchestrator.loggers.mlflow",
    "NeptuneLogger": "orchestrator.loggers.neptune",
    "WandbLogger": "orchestrator.loggers.wandb",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(
            f"module 'orchestrator.loggers' has no attribute {name!r}. Public names: {', '.join(__all__)}."
        )
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
