"""How many optimizer steps a fit will make: what schedulers of one cycle are built with.

A pure function of the limits and of an epoch's length. It counts what the limits allow: a fit that is stopped
early, or whose data end before they said, makes fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from orchestrator.settings import DEFAULT_MAX_EPOCHS, Settings


def estimate_steps(
    settings: Settings, num_batches: int | float | None, accumulation: Mapping[int, int] | None = None
) -> int | float | None:
    """Return how many optimizer steps a fit makes that nobody stops early.

    Args:
        settings: Epochs, steps and accumulation.
        num_batches: Training batches of each epoch; infinite for data without a length, None when the data is
            not loaded.
        accumulation: Batches that make one step, by the epoch from which on they do; as the settings say when
            None.

    Returns:
        A whole number; infinite where neither limits nor data say; None where the missing length of the data
        is needed.

    >>> estimate_steps(Settings(max_epochs=3, accumulate_grad_batches=4), 10)
    9
    >>> estimate_steps(Settings(max_epochs=3), 10, {0: 1, 2: 4})
    23
    """
    most = settings.max_steps if settings.max_steps != -1 else math.inf
    epochs = settings.max_epochs
    if epochs is None:
        limited = settings.max_steps != -1 or settings.max_time is not None
        epochs = -1 if limited else DEFAULT_MAX_EPOCHS
    if epochs == -1:
        return most
    if num_batches is None:
        return None
    if math.isinf(num_batches):
        return most
    plan = {0: settings.accumulate_grad_batches, **(accumulation or {})}
    starts = sorted(plan)
    steps = 0
    for start, end in zip(starts, [*starts[1:], epochs], strict=True):
        steps += max(0, min(end, epochs) - start) * math.ceil(num_batches / plan[start])
    return min(most, steps)
