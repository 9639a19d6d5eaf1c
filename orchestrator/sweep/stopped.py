"""How a trial that a sweep has ended leaves ``fit``."""

from __future__ import annotations


class TrialStopped(BaseException):
    """The sweep ended this trial early. Not a failure: lines after ``fit`` do not run, and the trial counts
    as finished.

    A BaseException, so that an ``except Exception`` around ``fit`` does not keep the trial going.
    """
