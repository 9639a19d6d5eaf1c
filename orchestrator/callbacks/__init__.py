"""Callbacks: code of one's own at every point of training, and the ready ones."""

from __future__ import annotations

from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.early_stopping import EarlyStopping
from orchestrator.callbacks.model_checkpoint import ModelCheckpoint
from orchestrator.callbacks.model_summary import ModelSummary
from orchestrator.callbacks.progress_bar import ProgressBar
from orchestrator.callbacks.rich_model_summary import RichModelSummary
from orchestrator.callbacks.rich_progress_bar import RichProgressBar, RichProgressBarTheme
from orchestrator.callbacks.tqdm_progress_bar import TQDMProgressBar

__all__ = [
    "Callback",
    "EarlyStopping",
    "ModelCheckpoint",
    "ModelSummary",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "RichProgressBarTheme",
    "TQDMProgressBar",
]
