"""When validation runs within a training epoch: after which of its batches.

The loop and those who must know ahead, such as a callback that waits for fresh metrics, ask the same pure
functions of numbers that all ranks share. An interval that the epoch cannot have raises
`MisconfigurationError`.
"""

from __future__ import annotations

import math

from orchestrator.errors import MisconfigurationError

NEVER = 0
AT_EPOCH_END = -1


def batches_between(
    *,
    val_check_interval: int | float,
    check_val_every_n_epoch: int | None,
    batches_in_epoch: float | None,
    validates: bool,
) -> int:
    """Return after how many batches validation runs: `AT_EPOCH_END`, `NEVER`, or a number of batches.

    Args:
        val_check_interval: The trainer's: a share of the epoch (float), or a number of batches (int).
        check_val_every_n_epoch: The trainer's; None counts batches over epochs.
        batches_in_epoch: Training batches of the epoch; None or infinity where nobody knows.
        validates: Whether there are validation batches at all.

    Raises:
        MisconfigurationError: for a share of an unknown length, or an interval longer than the epoch.
    """
    if not validates:
        return NEVER
    interval = val_check_interval
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
    return next_validation(every=every, batches=batches - 1, carried=carried) == batches
