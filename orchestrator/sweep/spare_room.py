"""Whether elastic trials may take more workers than they have reserved: while no trial waits for room.

The sweep's driver knows who waits, and the trials are elsewhere; so it says it with a file in the sweep's
directory, which all nodes share: as long as the file is there, trials may take what is free, one worker after
the other, and when it goes they give back what they took. A trial waits for a moment whenever another ends
and leaves it its process, which counts for nothing; the file comes and goes with what lasts longer.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.fitting import fits, plan_bundles
from cluster.placement import list_nodes
from cluster.spec import GroupSpec

FILE = ".spare_room"
_LASTING_S = 0.5
_LOOK_S = 0.5


class Sign:
    """The driver's end.

    Args:
        folder: The sweep's directory.
        clock: Seconds, ever growing.
    """

    def __init__(self, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = os.path.join(folder, FILE)
        self._clock = clock
        self._said = False
        self._waits = True
        self._since = clock()
        self.take_down()  # of a sweep that was broken off

    def update(self, trials: Sequence[Any]) -> None:
        """Put the sign up or take it down, by the status of all trials (Ray Tune's)."""
        waits = any(trial.status == "PENDING" for trial in trials)
        now = self._clock()
        if waits != self._waits:
            self._waits, self._since = waits, now
        if waits == self._said and now - self._since >= _LASTING_S:
            if waits:
                self.take_down()
            else:
                open(self._path, "w", encoding="utf-8").close()
                self._said = True

    def take_down(self) -> None:
        """Let trials give back what they have taken."""
        self._said = False
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._path)


class SpareRoom:
    """A trial's end: how many workers it may have at this moment.

    Args:
        folder: The sweep's directory.
        spec: Of the trial's group; what it has reserved is kept in any case.
        most: Workers that it could use.
        clock: Seconds, ever growing.
    """

    def __init__(
        self, folder: str, spec: GroupSpec, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = os.path.join(folder, FILE)
        self._spec, self._most, self._clock = spec, most, clock
        self._plan = plan_bundles(GroupSpec.create(1, resources_per_worker=dict(spec.resources_per_worker)))
        self._looked = -_LOOK_S

    def __call__(self, called: int) -> int:
        """Return how many there may be, given how many there are or were asked for."""
        if not os.path.exists(self._path):
            return min(called, self._spec.num_workers)
        now = self._clock()
        if called >= self._most or now - self._looked < _LOOK_S:
            return called
        self._looked = now
        nodes = list_nodes()
        fit = fits(self._plan, [node.free for node in nodes], [node.labels for node in nodes])
        return called + 1 if fit else called
