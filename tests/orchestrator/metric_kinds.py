"""Metric objects that tests log: the least that is one, and one that can be merged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Mean:
    """The mean of numbers; the least that `self.log` accepts as a metric object."""

    def __init__(self) -> None:
        self.reset()

    def update(self, *values: float) -> None:
        self.total += sum(values)
        self.count += len(values)

    def compute(self) -> float:
        return self.total / self.count

    def reset(self) -> None:
        self.total, self.count = 0.0, 0


class MergeableMean(Mean):
    """The same, which can be combined over ranks and resumed."""

    @property
    def metric_state(self) -> dict[str, Tensor]:
        return {"total": torch.tensor(self.total, dtype=torch.float64), "count": torch.tensor(self.count)}

    def merge_state(self, incoming_state: dict[str, Any]) -> None:
        self.total += float(incoming_state["total"])
        self.count += int(incoming_state["count"])
