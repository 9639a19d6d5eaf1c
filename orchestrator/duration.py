"""Reads lengths of time as users write them: a timedelta, a dictionary of its arguments, or DD:HH:MM:SS.

A pure function of its argument. What is none of these, or negative, raises `MisconfigurationError` naming the
argument and the three forms.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from orchestrator.errors import MisconfigurationError

_CLOCK = re.compile(r"(\d+):([01]?\d|2[0-3]):([0-5]?\d):([0-5]?\d)")


def parse_duration(argument: str, value: Any) -> timedelta | None:
    """Return the length of time that `value` means; None stays None.

    >>> parse_duration("Trainer(max_time=", "01:02:30:00")
    datetime.timedelta(days=1, seconds=9000)

    Args:
        argument: What to call the argument in an error, up to its value.
        value: A timedelta, keyword arguments of one as a dictionary, or days, hours, minutes and seconds.

    Raises:
        MisconfigurationError: It is something else, or negative.
    """
    if value is None:
        return None
    found: timedelta | None = value if isinstance(value, timedelta) else None
    if isinstance(value, str) and (match := _CLOCK.fullmatch(value.strip())):
        days, hours, minutes, seconds = map(int, match.groups())
        found = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    elif isinstance(value, dict):
        try:
            found = timedelta(**value)
        except (TypeError, OverflowError):
            found = None
    if found is None or found < timedelta(0):
        raise MisconfigurationError(
            f"{argument}{value!r}) is not a length of time. Write a datetime.timedelta, a dictionary of its "
            "arguments like {'hours': 2, 'minutes': 30}, or days, hours, minutes and seconds as "
            "'DD:HH:MM:SS'."
        )
    return found
