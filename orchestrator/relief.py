"""Whether slow processes are to be given fewer logical ranks: decided from how long each took, by numbers
alone.

Every process knows the times of all, to the bit, so all decide the same without asking. A process's speed is
the median over the last steps, so one slow step moves nothing; and moving must gain more than it costs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cluster.layout import shares_for

STEPS = 6
"""Steps that are looked at."""
_LEAST_GAIN = 0.15  # of a step
_COST_S = 0.5
_WITHIN = 50  # steps in which moving must pay


def relieved_shares(times: Sequence[Sequence[float]], shares: Sequence[int]) -> list[int] | None:
    """Return how many logical ranks each process is to host; None to leave them where they are.

    Args:
        times: For each of the last steps, the seconds that each process took for its logical ranks.
        shares: How many each process hosts.

    >>> relieved_shares([[0.4, 0.4, 0.8]] * 6, [8, 8, 8])
    [10, 10, 4]
    >>> relieved_shares([[0.4, 0.4, 0.41]] * 6, [8, 8, 8])
    """
    if len(times) < STEPS or len(shares) < 2:
        return None
    taken = [statistics.median(step[process] for step in times) for process in range(len(shares))]
    if min(taken) <= 0.0:
        return None
    speeds = [share / seconds for share, seconds in zip(shares, taken, strict=True)]
    wanted = shares_for(speeds, sum(shares))
    then = max(share / speed for share, speed in zip(wanted, speeds, strict=True))
    gain = max(taken) - then
    if gain < _LEAST_GAIN * max(taken) or gain * _WITHIN < _COST_S:
        return None
    return wanted
