"""What rank 0 tells the driver for the run's record: that something has happened, where, and where the time
went.

Plain values only, so it travels as it is. It is told when an epoch, a validation or a checkpoint is done,
never in a step. It has no behaviour, so it cannot fail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that has happened.

    Attributes:
        kind: What: ``train`` (the first batch is next), ``epoch``, ``validation``, ``checkpoint``, ``end``.
        at_s: When, in seconds since 1970, by rank 0's clock.
        epoch: The training epoch, from 0.
        step: Optimizer steps so far.
        samples: Training samples so far, over all ranks.
        account: Whose seconds these are: a process and a number.
        seconds: Where the time went until now, by kind.
        details: What else there is to say: numbers, words, and dictionaries of them.
    """

    kind: str
    at_s: float
    epoch: int
    step: int
    samples: int
    account: tuple[int, int]
    seconds: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
