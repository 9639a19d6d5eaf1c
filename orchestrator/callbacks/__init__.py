"""Callbacks: code of one's own at every point of training, and the ready ones."""

from __future__ import annotations

from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.early_stopping import EarlyStopping
from orchestrator.callbacks.model_checkpoint import ModelCheckpoint

__all__ = ["Callback", "EarlyStopping", "ModelCheckpoint"]
