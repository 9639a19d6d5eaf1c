"""Loggers: where a run's numbers and hyperparameters go."""

from __future__ import annotations

from orchestrator.loggers.csv import CSVLogger
from orchestrator.loggers.dummy import DummyLogger
from orchestrator.loggers.logger import Logger
from orchestrator.loggers.tensorboard import TensorBoardLogger

__all__ = ["CSVLogger", "DummyLogger", "Logger", "TensorBoardLogger"]
