"""What training knows about where it is: the counters, and nothing else.

With the cursor, the random states and the tensors this is all that a checkpoint needs to go on at the very
sample. Counters only ever grow within a fit. Everything here is plain, so it can be written as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, kw_only=True)
class TrainState:
    """The counters of a trainer.

    Attributes:
        fn: What was called: fit, validate, test, predict, or "" before the first call.
        stage: What is running now: train, validate, test, predict, sanity, or "".
        status: initializing, running, finished or interrupted.
        epoch: Training epochs that have ended; while one runs, its index.
        global_step: Optimizer steps; with manual optimization, of each optimizer.
        windows: Batches that have closed an accumulation window: all of them with manual optimization.
        batches_seen: Training batches of the epochs that have ended, over all ranks.
        samples_seen: Training samples of the epochs that have ended, over all ranks.
        past_batches: Batches of the epochs that have ended that each rank has used.
        epoch_batches: Batches of the running epoch that each rank has used.
        exhausted: The running epoch's batches are used up, and its schedulers have stepped.
        validated: Validation has run since the last batch.
        epoch_ended: The epoch's batches and hooks are done; only the next epoch is left to begin.
        accumulate: Batches that make one step, as set during training from the next epoch on; 0 where nobody
            has set it.
    """

    fn: str = ""
    stage: str = ""
    status: str = "initializing"
    epoch: int = 0
    global_step: int = 0
    windows: int = 0
    batches_seen: int = 0
    samples_seen: int = 0
    past_batches: int = 0
    epoch_batches: int = 0
    exhausted: bool = False
    validated: bool = False
    epoch_ended: bool = False
    accumulate: int = 0

    @property
    def finished(self) -> bool:
        """Whether the last call came to its end."""
        return self.status == "finished"

    @property
    def stopped(self) -> bool:
        """Whether the last call ended, by itself or by an exception."""
        return self.status in ("finished", "interrupted")

    def end_epoch(self, batches: int, samples: int) -> None:
        """Count an epoch of so many batches and samples, over all ranks, and stand before the next one."""
        self.batches_seen += batches
        self.samples_seen += samples
        self.past_batches += self.epoch_batches
        self.epoch += 1
        self.epoch_batches = 0
        self.exhausted = self.validated = self.epoch_ended = False

    def counters(self) -> dict[str, int]:
        """Return what a checkpoint keeps."""
        return {name: int(getattr(self, name)) for name in _KEPT}

    def restore(self, counters: dict[str, Any]) -> None:
        """Take back what `counters` returned."""
        counters = {"windows": counters.get("global_step", 0), **counters}
        counters["accumulate"] = counters.get("accumulate") or self.accumulate
        for name, kind in _KEPT.items():
            setattr(self, name, kind(counters.get(name, 0)))


_KEPT: dict[str, type] = {
    "epoch": int,
    "global_step": int,
    "windows": int,
    "batches_seen": int,
    "samples_seen": int,
    "past_batches": int,
    "epoch_batches": int,
    "exhausted": bool,
    "validated": bool,
    "epoch_ended": bool,
    "accumulate": int,
}
