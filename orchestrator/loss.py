"""What a training step returned, read: its loss, or a sum of losses with the number that it is over.

A loss is a mean over its batch, and a step's gradient the mean over batches and ranks. A sum with a count
(``{"loss_sum": s, "loss_count": n}``, tokens for example) is exact where batches hold unequal numbers: the
gradient of a step is that of the sum of all `s` divided by the sum of all `n`, over micro-batches and ranks.
Counts stay on their device, so nothing waits. A run uses one form throughout; anything else is a
`MisconfigurationError` that says what was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import MisconfigurationError
from orchestrator.strategies.strategy import Strategy


def loss_of(outputs: Any) -> Tensor | None:
    """Return the loss in what a training step returned: a tensor, a dictionary with ``loss``, or None.

    Raises:
        MisconfigurationError: It is something else.
    """
    if outputs is None or isinstance(outputs, Tensor):
        loss = outputs
    elif isinstance(outputs, dict) and isinstance(outputs.get("loss"), Tensor):
        loss = outputs["loss"]
    else:
        found = (
            f"a dictionary with keys {sorted(map(str, outputs))}"
            if isinstance(outputs, dict)
            else type(outputs).__name__
        )
        raise MisconfigurationError(
            f"training_step returned {found}. Return the loss as a tensor, a dictionary with 'loss', or "
            "None; or a sum and its count as {'loss_sum': ..., 'loss_count': ...}."
        )
    if loss is not None and loss.numel() != 1:
        raise MisconfigurationError(
            f"training_step returned a loss of shape {tuple(loss.shape)}. Return one number: reduce it, "
            "say by .mean()."
        )
    return loss


def is_sum(outputs: Any) -> bool:
    """Whether a training step returned a sum of losses with its count.

    Raises:
        MisconfigurationError: It is half of that, or that and a loss besides.
    """
    if not isinstance(outputs, dict) or not ("loss_sum" in outputs or "loss_count" in outputs):
        return False
    if "loss" in outputs or not ("loss_sum" in outputs and "loss_count" in outputs):
        raise MisconfigurationError(
            f"training_step returned a dictionary with keys {sorted(map(str, outputs))}. Return 'loss', or "
            "'loss_sum' together with 'loss_count'."
        )
    return True


class LossCounts:
    """Adds up the counts of an accumulation window, and scales its gradients by them.

    Attributes:
        in_use: Training steps return sums; None until one has returned something.
    """

    def __init__(self) -> None:
        self.in_use: bool | None = None
        self._on_host = 0.0
        self._on_device: Tensor | None = None

    def open_window(self) -> None:
        """Forget the counts of the window before."""
        self._on_host, self._on_device = 0.0, None

    def on_host(self) -> float:
        """Return the sum of the window's counts; waits for a device that has some."""
        return self._on_host + (0.0 if self._on_device is None else float(self._on_device))

    def settle(self, in_use: bool) -> None:
        """Note which form the run uses.

        Raises:
            MisconfigurationError: It was the other one before.
        """
        if self.in_use is not None:
            now, before = ("'loss_sum' and 'loss_count'", "a loss")[:: 1 if in_use else -1]
            raise MisconfigurationError(
                f"training_step returned {now}, and in an earlier batch {before}: one is a sum, the other a "
                "mean, and a step cannot weigh them against each other. Return the same form for every batch."
            )
        self.in_use = in_use

    def take(self, outputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Add a micro-batch's count; return the sum to differentiate, and what hooks see: `outputs` with
        ``loss``, the sum divided by the count and detached.

        Raises:
            MisconfigurationError: The sum or the count is no number, or a count that can be read without
                waiting is negative.
        """
        total, count = outputs["loss_sum"], outputs["loss_count"]
        if not isinstance(total, Tensor) or total.numel() != 1:
            shape = f"a tensor of shape {tuple(total.shape)}" if isinstance(total, Tensor) else repr(total)
            raise MisconfigurationError(
                f"training_step returned {shape} as 'loss_sum'. Return a tensor of one number, say by .sum()."
            )
        if isinstance(count, Tensor) and count.numel() == 1 and not count.is_complex():
            count = count.detach().reshape(())
            if count.device.type == "cpu":
                count = count.item()
        if isinstance(count, Tensor) and not count.ndim and not count.is_complex():
            wide = torch.float32 if count.device.type == "mps" else torch.float64
            count = count.to(wide)
            self._on_device = count if self._on_device is None else self._on_device + count
        elif isinstance(count, (int, float)) and 0 <= count < float("inf"):
            self._on_host += count
        else:
            raise MisconfigurationError(
                f"training_step returned 'loss_count' {outputs['loss_count']!r}. Return the number that "
                "'loss_sum' is a sum over: at least 0, a number or a tensor of one element."
            )
        shown = total.detach()
        divisible = isinstance(count, Tensor) or count
        return total, {**outputs, "loss": shown / count if divisible else shown * float("nan")}

    def scale(self, parameters: Sequence[nn.Parameter], strategy: Strategy) -> None:
        """Turn gradients that are means over ranks of sums into the gradient of the mean. Communicates on a
        group: one number.

        A window whose counts add up to 0 gives gradients of 0; one whose counts on a device add up to less
        gives NaN.
        """
        if strategy.world_size == 1 and self._on_device is None:
            strategy.scale_gradients(parameters, 1.0 / self._on_host if self._on_host else 0.0)
            return
        count = self._on_device
        if count is None:
            wide = torch.float32 if strategy.device.type == "mps" else torch.float64
            count = torch.tensor(self._on_host, dtype=wide, device=strategy.device)
        elif self._on_host:
            count = count + self._on_host
        count = strategy.add_up(count)
        factor = torch.where(count >= 0, strategy.world_size / count, torch.nan)
        factor = torch.where(count == 0, 0.0, factor)
        strategy.scale_gradients(parameters, factor)
