"""When validation runs within a training epoch: after which of its batches.

The loop and those who must know ahead, such as a callback that waits for fresh metrics, ask the same pure
functions of numbers that all ranks share. Validation that goes by the time nobody knows ahead: a clock
decides it, on a group rank 0's, when ranks meet anyway. An interval that the epoch cannot have raises
`MisconfigurationError`.
"""

from __future__ import annotations

import math
import time
from datetime import timedelta

from orchestrator.errors import MisconfigurationError

NEVER = 0
AT_EPOCH_END = -1
BY_TIME = -2


def batches_between(
    *,
    val_check_interval: int | float | timedelta,
    check_val_every_n_epoch: int | None,
    batches_in_epoch: float | None,
    validates: bool,
) -> int:
    """Return after how many batches validation runs: `AT_EPOCH_END`, `BY_TIME`, `NEVER`, or a number of
    batches.

    Args:
        val_check_interval: The trainer's: a share of the epoch (float), a number of batches (int), or a time.
        check_val_every_n_epoch: The trainer's; None counts batches over epochs.
        batches_in_epoch: Training batches of the epoch; None or infinity where nobody knows.
        validates: Whether there are validation batches at all.

    Raises:
        MisconfigurationError: for a share of an unknown length, or an interval longer than the epoch.
    """
    if not validates:
        return NEVER
    interval = val_check_interval
    if isinstance(interval, timedelta):
        return BY_TIME
    length = None if batches_in_epoch is None or math.isinf(batches_in_epoch) else int(batches_in_epoch)
    if isinstance(interval, float):
        if interval == 1.0:
            return AT_EPOCH_END
        if length is None:
            raise MisconfigurationError(
                f"Trainer(val_check_interval={interval}) needs a loader with a length. Use a number of "
                "batches, or 1.0."
            )
        return max(1, int(length * interval))
    if check_val_every_n_epoch is not None and length is not None and interval > length:
        raise MisconfigurationError(
            f"Trainer(val_check_interval={interval}) is more than the {length} training batches of "
            "an epoch. "
            f"Use at most {length}, or a fraction, or check_val_every_n_epoch=None to count batches "
            "over epochs."
        )
    return interval


def validates_in(epoch: int, check_val_every_n_epoch: int | None) -> bool:
    """Whether epoch `epoch`, from 0, is one with validation."""
    return check_val_every_n_epoch is None or (epoch + 1) % check_val_every_n_epoch == 0


def batches_carried(past_batches: int, check_val_every_n_epoch: int | None) -> int:
    """Return how many of the `past_batches` of earlier epochs count towards the next validation."""
    return past_batches if check_val_every_n_epoch is None else 0


def next_validation(*, every: int, batches: int, carried: int) -> int:
    """Return the number, from 1, of the epoch's next batch that validation follows.

    The loop asks once and then compares two numbers a step. The epoch may end before that batch.

    >>> next_validation(every=4, batches=0, carried=10), next_validation(every=4, batches=2, carried=10)
    (2, 6)

    Args:
        every: What `batches_between` returned.
        batches: Batches of the epoch that have been used.
        carried: What `batches_carried` returned.

    Returns:
        A number above `batches`; 0 where no count of batches decides, `every` being negative or `NEVER`.
    """
    return batches + every - (carried + batches) % every if every > 0 else 0


def is_due(*, every: int, batches: int, carried: int, is_last: bool) -> bool:
    """Whether validation follows batch number `batches`, from 1, in an epoch with validation.

    Args:
        every: What `batches_between` returned.
        batches: The batch's number in the epoch.
        carried: What `batches_carried` returned.
        is_last: The batch is the epoch's last.
    """
    if every == AT_EPOCH_END:
        return is_last
    if every == BY_TIME:
        return False
    return next_validation(every=every, batches=batches - 1, carried=carried) == batches


class ValidationClock:
    """Says when validation is due that goes by the time since the last one, or since training began.

    Args:
        interval: The time between validations.
        alone: There is one rank, so its own clock decides at each batch. Otherwise rank 0's does, at the log
            points, where ranks talk to each other anyway.

    Attributes:
        agreed: Rank 0's clock was up at the last log point, and no batch has been asked about since.
    """

    def __init__(self, interval: timedelta, *, alone: bool) -> None:
        self._interval_s = interval.total_seconds()
        self._alone = alone
        self._since = time.monotonic()
        self.agreed = False

    def is_up(self) -> bool:
        """Whether the interval has passed by this process's clock."""
        return time.monotonic() - self._since >= self._interval_s

    def is_due(self) -> bool:
        """Whether validation follows this batch; the same answer on all ranks."""
        if self._alone:
            return self.is_up()
        due, self.agreed = self.agreed, False
        return due

    def restart(self) -> None:
        """Begin the next interval."""
        self._since = time.monotonic()
