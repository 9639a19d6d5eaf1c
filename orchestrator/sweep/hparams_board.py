"""Tells TensorBoard's HParams tab how each trial did: its configuration against the last and the best value.

One event file in each trial's directory, written when the trial ends: ``tensorboard --logdir SWEEP`` compares
all trials, beside what their own loggers have written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.loggers.event_file import EventFile
from orchestrator.loggers.hparams_tab import run_ended, run_started
from orchestrator.sweep.tables import flat


def write_hparams(
    folder: str, config: Mapping[str, Any], metric: str, last: float, best: float, reports: int
) -> None:
    """Write one trial's file.

    Args:
        folder: The trial's directory.
        config: Its configuration.
        metric: What trials are compared by.
        last: Its last value.
        best: Its best value.
        reports: How many it has made; the step at which the values stand.
    """
    values = {f"sweep/last_{metric}": last, f"sweep/best_{metric}": best}
    events = EventFile(folder, flush_secs=3600.0)
    try:
        events.add_event(run_started(flat(config), list(values)))
        events.add_scalars(values, reports)
        events.add_event(run_ended(succeeded=True))
    finally:
        events.close()
