"""The tuner: tries learning rates and batch sizes before training."""

from __future__ import annotations

from orchestrator.tuner.tuner import Tuner

__all__ = ["Tuner"]
