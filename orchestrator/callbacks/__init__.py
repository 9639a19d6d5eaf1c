"""Callbacks: code of one's own at every point of training, and the ready ones."""

from __future__ import annotations

from orchestrator.callbacks.batch_size_finder import BatchSizeFinder
from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.early_stopping import EarlyStopping
from orchestrator.callbacks.lr_finder import LearningRateFinder
from orchestrator.callbacks.model_checkpoint import ModelCheckpoint
from orchestrator.callbacks.model_summary import ModelSummary
from orchestrator.callbacks.progress_bar import ProgressBar
from orchestrator.callbacks.rich_model_summary import RichModelSummary
from orchestrator.callbacks.rich_progress_bar import RichProgressBar, RichProgressBarTheme
from orchestrator.callbacks.throughput_monitor import ThroughputMonitor
from orchestrator.callbacks.tqdm_progress_bar import TQDMProgressBar

__all__ = [
    "BatchSizeFinder",
    "Callback",
    "EarlyStopping",
    "LearningRateFinder",
    "ModelCheckpoint",
    "ModelSummary",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "RichProgressBarTheme",
    "TQDMProgressBar",
    "ThroughputMonitor",
]
