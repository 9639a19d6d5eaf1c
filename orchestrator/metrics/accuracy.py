"""The share of predictions that are right, counted exactly over batches, epochs and ranks.

Counts are int64 and stay on the device of what is counted; nothing waits for it. They are no buffers: they
are not part of the weights, and data parallel training leaves them alone. Shapes that do not belong together
are a `ValueError`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Accuracy(nn.Module):
    """Accuracy of logits, probabilities or labels; assign it to an attribute of the module and log it.

    Called, it counts a batch and returns the batch's accuracy; `update` only counts. `compute` gives the
    accuracy since the last `reset`, which `self.log(name, metric)` does after each epoch.

    Args:
        threshold: From which probability on a prediction of two classes is positive; logits become
            probabilities by a sigmoid.

    Attributes:
        sync_on_compute: `compute` counts what all ranks have seen; on a group all of them must call it.

    Raises:
        ValueError: `threshold` is not between 0 and 1.

    >>> accuracy = Accuracy()
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    >>> accuracy.update(torch.tensor([1, 0]), torch.tensor([1, 0]))
    >>> accuracy.compute()
    tensor(0.7500)
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"Accuracy(threshold={threshold!r}) is no probability. Use one from 0 to 1.")
        self.threshold = threshold
        self.sync_on_compute = True
        self.correct = torch.zeros((), dtype=torch.int64)
        self.total = 0
        self._forward_cache: Tensor | None = None

    def forward(self, preds: Tensor, target: Tensor) -> Tensor:
        """Count a batch and return its accuracy; see `update`."""
        correct, total = self._count(preds, target)
        self._add(correct, total)
        self._forward_cache = correct / total
        return self._forward_cache

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            preds: Scores of shape (N, C, ...), of which the largest counts; or of the shape of `target`:
                labels if they are whole numbers, else probabilities, or logits where any is outside of 0 to
                1.
            target: Labels of shape (N, ...): whole numbers or booleans.

        Raises:
            ValueError: The shapes do not belong together.
        """
        self._add(*self._count(preds, target))

    def compute(self) -> Tensor:
        """Return the accuracy since the last `reset`, a float scalar; NaN when nothing was counted.

        Communicates on a group, unless `sync_on_compute` is False. `self.log(name, metric)` does not need it.
        """
        if self.sync_on_compute and dist.is_available() and dist.is_initialized():
            counts = torch.stack([self.correct.cpu(), torch.tensor(self.total)])
            dist.all_reduce(counts)
            return counts[0] / counts[1]
        return self.correct / self.total if self.total else torch.tensor(torch.nan)

    def reset(self) -> None:
        """Forget all counts."""
        self.correct = torch.zeros_like(self.correct)
        self.total = 0
        self._forward_cache = None

    @property
    def metric_state(self) -> dict[str, Any]:
        """The counts: ``correct`` and ``total``, int64 scalars."""
        return {"correct": self.correct, "total": torch.tensor(self.total)}

    def merge_state(self, incoming_state: dict[str, Any]) -> None:
        """Add the counts of another `Accuracy`."""
        self._add(incoming_state["correct"], int(incoming_state["total"]))

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"threshold={self.threshold}"

    def _add(self, correct: Tensor, total: int) -> None:
        if self.correct.device != correct.device:
            self.correct = self.correct.to(correct.device)
        self.correct = self.correct + correct
        self.total += total

    @torch.no_grad()
    def _count(self, preds: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """Return how many are right, and of how many."""
        if preds.ndim == target.ndim + 1 and preds.shape[:1] + preds.shape[2:] == target.shape:
            labels = preds.argmax(dim=1)
        elif preds.shape != target.shape:
            raise ValueError(
                f"Accuracy got predictions of shape {tuple(preds.shape)} for a target of shape "
                f"{tuple(target.shape)}. Give scores of shape (N, C, ...) and labels of shape (N, ...), or "
                "two tensors of one shape."
            )
        elif preds.is_floating_point():
            are_logits = ((preds < 0) | (preds > 1)).any()
            labels = torch.where(are_logits, preds.sigmoid(), preds) >= self.threshold
        else:
            labels = preds
        return (labels == target).sum(), target.numel()
