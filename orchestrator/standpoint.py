"""Where ranks stand when one of them is lost, and where they go on together: decided by numbers alone.

A rank stands behind its last commit, and behind so many of the meetings that followed it. Committing needs a
contribution of every rank, and so does a meeting. So where ranks differ, none is further ahead than the next
commit or meeting, and the place that they go back to is one that all of them have passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Standpoint(NamedTuple):
    """Where a rank stands; the greater is further on.

    Attributes:
        windows: Commits of the run.
        meetings: Of the meetings since the last one, those in which every rank has got what the others had.
    """

    windows: int
    meetings: int


def go_back_to(standpoints: Sequence[Standpoint | None]) -> Standpoint | None:
    """Return where all ranks go on, from where each stands; None for one that replaces a lost one.

    The last common place is behind the fewest commits. A rank that has committed once more had met there as
    often as was to be; so the most meetings of those with the fewest commits are all that there were.

    >>> go_back_to([Standpoint(7, 0), None, Standpoint(8, 0)])
    Standpoint(windows=7, meetings=0)
    >>> go_back_to([Standpoint(7, 1), Standpoint(7, 2), None])
    Standpoint(windows=7, meetings=2)
    >>> go_back_to([None, None]) is None
    True
    """
    known = [item for item in standpoints if item is not None]
    if not known:
        return None
    fewest = min(item.windows for item in known)
    return max(item for item in known if item.windows == fewest)
