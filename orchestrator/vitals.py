"""How a run is doing while it trains, for the display: what gets through, what it waits for, who is slow.

Nothing is measured in a step. Numbers are put together when a progress record is sent, a few times a second
at most; which rank is slow is found out at log points, where ranks exchange what was logged anyway: each adds
how long its own part of a step took. That part is a step's time less the wait for other ranks' gradients,
which `DistributedDataParallel` has sampled by itself; under other strategies no rank is called slow.

What is not known is None. Nothing here can end a run.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.device_peaks import available_flops
from orchestrator.strategies.ddp import DataParallel

if TYPE_CHECKING:
    from orchestrator.engine import Engine

SLOW = 1.25
"""So many times the others' part of a step makes a rank a slow one."""
SLOW_S = 0.001
"""And so many seconds more than theirs, at least."""


class Vitals:
    """The vital signs of one engine.

    Args:
        engine: Whose run.

    Attributes:
        slow: The slowest rank, and how many times longer its part of a step takes; None where none is slow.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = (0.0, 0)
        self._mfu_a_sample: float | None = None
        self._knows_peak = False
        self.slow: tuple[int, float] | None = None

    def own_step_s(self) -> float:
        """Return the seconds of this rank's own part of a step since the last time; 0.0 where that is not
        known. Asked at log points."""
        strategy, (before_s, before) = self._engine.strategy, self._before
        if not isinstance(strategy, DataParallel):
            return 0.0
        trained_s, steps = self._engine.account.trained_s, self._engine.state.windows
        self._before = trained_s, steps
        if steps <= before:
            return 0.0
        return max(0.0, (trained_s - before_s) / (steps - before) - strategy.waited_s())

    def compare(self, own_step_s: Sequence[float]) -> None:
        """Take every rank's part of a step."""
        self.slow = slowest(own_step_s)

    def in_words(self) -> dict[str, str]:
        """Return what the run's record says of slow ranks; nothing where there are none."""
        return (
            {} if self.slow is None else {"slow": f"rank {self.slow[0]} takes {self.slow[1]:.1f} x as long"}
        )

    def of_training(self, batches: int) -> dict[str, Any]:
        """Return what a progress record says besides, after so many batches of the epoch."""
        feed = self._engine.feed
        if feed is None or not batches:
            return {}
        return {
            "samples": feed.totals(batches)[1],
            "waits": self._engine.account.data_share,
            "mfu_a_sample": self._share_of_a_sample(feed.totals(batches)[1] / batches),
            "slow": self.slow,
        }

    def _share_of_a_sample(self, samples_a_step: float) -> float | None:
        """Return what one sample takes of what all devices can do in a second; looked up once."""
        if self._knows_peak:
            return self._mfu_a_sample
        self._knows_peak = True
        engine = self._engine
        processes = engine.trainer.plan.num_workers
        flops = getattr(engine.module, "flops_per_sample", None)
        if flops is None:
            of_batch = getattr(engine.module, "flops_per_batch", None)
            flops = None if of_batch is None else of_batch * engine.place.world_size / samples_a_step
        told = (
            getattr(item, "available_flops", None) for item in engine.trainer.callbacks
        )  # a ThroughputMonitor
        peak = next((item for item in told if item), None)
        peak = peak or available_flops(engine.place.device, engine.settings.precision)
        if flops and peak:
            self._mfu_a_sample = float(flops) / (float(peak) * processes)
        return self._mfu_a_sample


def slowest(own_step_s: Sequence[float]) -> tuple[int, float] | None:
    """Return the rank whose part of a step takes longest, and how many times as long as the others' in the
    middle; None where it does not stand out, or somebody's part is not known.

    >>> slowest([0.010, 0.019, 0.010]), slowest([0.010, 0.011]), slowest([0.010, 0.0])
    ((1, 1.9), None, None)
    """
    if len(own_step_s) < 2 or min(own_step_s) <= 0:
        return None
    rank = max(range(len(own_step_s)), key=own_step_s.__getitem__)
    others = statistics.median([value for place, value in enumerate(own_step_s) if place != rank])
    if own_step_s[rank] < SLOW * others or own_step_s[rank] - others < SLOW_S:
        return None
    return rank, round(own_step_s[rank] / others, 2)
