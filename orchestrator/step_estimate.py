"""How many optimizer steps a fit will make: what schedulers of one cycle are built with.

A pure function of the limits and of an epoch's length. It counts what the limits allow: a fit that is stopped
early, or whose data end before they said, makes fewer.
"""

from __future__ import annotations

import math

from orchestrator.settings import DEFAULT_MAX_EPOCHS, Settings


def estimate_steps(settings: Settings, num_batches: int | float | None) -> int | float | None:
    """Return how many optimizer steps a fit makes that nobody stops early.

    Args:
        settings: Epochs, steps and accumulation.
        num_batches: Training batches of each epoch; infinite for data without a length, None when the data is
            not loaded.

    Returns:
        A whole number; infinite where neither limits nor data say; None where the missing length of the data
        is needed.

    >>> estimate_steps(Settings(max_epochs=3, accumulate_grad_batches=4), 10)
    9
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
    return min(most, epochs * math.ceil(num_batches / settings.accumulate_grad_batches))
