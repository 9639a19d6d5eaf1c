"""Metrics that come with the package: `Accuracy`. For all others use torchmetrics; `self.log` takes both."""

from __future__ import annotations

from orchestrator.metrics.accuracy import Accuracy as Accuracy

__all__ = ["Accuracy"]
