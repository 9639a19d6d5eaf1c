"""End training when the loss jumps, and write down which batches did it, so that they can be left out.

Losses stay on the device and are read with one copy at each log point, where ranks exchange them: a jump is
found up to `log_every_n_steps` after it happened, and costs no step a wait. A jump on any rank ends training
on all, by `TrainingSpikeException`. Arguments that cannot work raise `MisconfigurationError`.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


class TrainingSpikeException(RuntimeError):
    """The loss has jumped.

    Attributes:
        batch_idx: The batch of the running epoch at which it did.
    """

    def __init__(self, batch_idx: int, loss: float | None = None, mean: float | None = None) -> None:
        super().__init__(batch_idx, loss, mean)
        self.batch_idx = batch_idx
        self.loss = loss
        self.mean = mean

    def __str__(self) -> str:
        return (
            f"The loss jumped at batch {self.batch_idx}: to {self.loss:.6g}, from a mean of {self.mean:.6g}. "
            "Leave out the batches in the file of SpikeDetection(exclude_batches_path=...), and go on from "
            "an "
            "earlier checkpoint."
        )


class SpikeDetection(Callback):
    """Compares each loss with the mean of those before it.

    A loss is a spike when it is worse than the one before it, and further from the mean of the last `window`
    than both `atol` and `rtol` times the mean.

    Args:
        mode: "min" if a lower loss is better, "max" if a higher one.
        window: Losses in the mean.
        warmup: Losses at the beginning of fit that are not judged.
        atol: Absolute distance from the mean; None leaves it out.
        rtol: Distance in multiples of the mean; None leaves it out.
        exclude_batches_path: A JSON file, or a directory for ``skip_batches.json``, that gets the numbers of
            the batch at fault and the one before it. By default in the working directory.
        finite_only: A loss that is NaN or infinite is a spike; False passes over it.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    meets_ranks = True

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | os.PathLike[str] | None = None,
        finite_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise MisconfigurationError(f"SpikeDetection(mode={mode!r}) is neither. Write 'min' or 'max'.")
        for name, count, least in (("window", window, 1), ("warmup", warmup, 0)):
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise MisconfigurationError(
                    f"SpikeDetection({name}={count!r}) is not a number of losses. Write {least} or more."
                )
        for name, distance in (("atol", atol), ("rtol", rtol)):
            is_number = isinstance(distance, int | float) and not isinstance(distance, bool)
            if distance is not None and not (is_number and distance >= 0):
                raise MisconfigurationError(
                    f"SpikeDetection({name}={distance!r}) is not a distance. Write 0 or more, or None."
                )
        self.mode = mode
        self.window = window
        self.warmup = warmup
        self.atol = atol
        self.rtol = rtol
        self.finite_only = finite_only
        path = Path.cwd() if exclude_batches_path is None else Path(exclude_batches_path).absolute()
        self.exclude_batches_path = path if path.suffix == ".json" else path / "skip_batches.json"
        self.bad_batches: list[int] = []
        self._recent: list[list[float]] = []
        self._last: list[float] = []
        self._seen = 0
        self._unread: list[tuple[int, Tensor]] = []
        self._every = self._due = 1

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of the window, by rank, and how many were seen."""
        return {"recent": self._recent, "last": self._last, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._recent = [list(losses) for losses in state_dict["recent"]]
        self._last = list(state_dict["last"])
        self._seen = int(state_dict["seen"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up where the log points are."""
        self._unread = []
        self._every = trainer.log_every_n_steps
        self._due = self._next_due(trainer.state.windows)
        if len(self._recent) != trainer.world_size:
            self._recent = [[] for _ in range(trainer.world_size)]
            self._last = [math.nan] * trainer.world_size
            self._seen = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, and judge all that were kept where a log point is."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if isinstance(loss, Tensor):
            self._unread.append((batch_idx, loss))
        step = trainer.state.windows
        if step >= self._due:
            self._due = self._next_due(step)
            self._judge_all(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge what came after the last log point."""
        self._judge_all(trainer)

    def _next_due(self, step: int) -> int:
        return (step // self._every + 1) * self._every

    def _judge_all(self, trainer: Trainer) -> None:
        """Read this rank's losses with one copy, exchange them, and judge all. Communicates."""
        unread, self._unread = self._unread, []
        values = torch.stack([loss.reshape(()).float() for _, loss in unread]).tolist() if unread else []
        own = [(index, value) for (index, _), value in zip(unread, values, strict=True)]
        strategy = trainer.strategy
        ranks = [own] if strategy is None else strategy.gather(own)
        for place in range(max(map(len, ranks))):
            present = [(rank, *losses[place]) for rank, losses in enumerate(ranks) if place < len(losses)]
            for rank, index, loss in present:
                if self._seen >= self.warmup and self._is_spike(rank, loss):
                    self._raise(trainer, index, loss, self._mean(rank))
            for rank, _, loss in present:
                if math.isfinite(loss):
                    self._recent[rank] = [*self._recent[rank], loss][-self.window :]
                    self._last[rank] = loss
            self._seen += 1

    def _mean(self, rank: int) -> float:
        recent = self._recent[rank]
        return sum(recent) / len(recent) if recent else math.nan

    def _is_spike(self, rank: int, loss: float) -> bool:
        if not math.isfinite(loss):
            return self.finite_only
        change = loss - self._last[rank]
        if (change <= 0) if self.mode == "min" else (change >= 0):
            return False
        mean = self._mean(rank)
        distance = abs(loss - mean)
        far = self.atol is None or distance >= self.atol
        return not math.isnan(mean) and far and (self.rtol is None or distance >= self.rtol * abs(mean))

    def _raise(self, trainer: Trainer, batch_idx: int, loss: float, mean: float) -> None:
        """All ranks come here together."""
        self.bad_batches += [max(0, batch_idx - 1), batch_idx]
        if trainer.is_global_zero:
            path = self.exclude_batches_path
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(sorted({*known, *self.bad_batches})), encoding="utf-8")
        raise TrainingSpikeException(batch_idx, loss, mean)
