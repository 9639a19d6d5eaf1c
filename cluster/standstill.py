"""Notices that a run stands still although all of its processes live, and has it looked into.

The signs of life of each worker say whether its callable has got on since the last one, so watching costs
the callable nothing. Where no rank has got on for `patience_s`, and for three times as long as any pause of
this run before, all ranks are looked at and the case is diagnosed (see `cluster.autopsy`); what may be slow
rather than stuck is looked at again later before it is told. Each standstill is told once, and its end too.
Nothing is ever killed or slowed down here, and what fails here does not reach the run.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.autopsy import LONG, VERY_LONG, Autopsy, diagnose
from cluster.rank_state import RankState
from cluster.ranks import WorkerInfo

_TICK_S = 0.5
_PAUSES = 3.0
_WARMING_UP = 5  # the first pauses compile, load and cache, and say nothing of those to come
_LOOKS = (1, LONG, VERY_LONG)

logger = logging.getLogger("cluster")


@dataclass(frozen=True, slots=True, kw_only=True)
class StandstillPolicy:
    """When a standstill is looked into, and who is told.

    Attributes:
        patience_s: Seconds without progress that are no reason to look.
        slow: Modules and functions in which a rank may take long while others wait.
        tell: Called with a text, in a thread of its own; None logs it as a warning.
    """

    patience_s: float
    slow: Collection[str] = ()
    tell: Callable[[str], None] | None = None


class Suspicion:
    """Decides from the seconds without progress when to look; knows nothing of ranks and threads.

    Args:
        patience_s: See `StandstillPolicy`.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._still_s = 0.0
        self._pauses = 0
        self._longest_s = 0.0
        self._looked = 0
        self._told = False

    @property
    def threshold_s(self) -> float:
        """How long a standstill lasts now before it is looked into."""
        return max(self._patience_s, _PAUSES * self._longest_s)

    def note(self, still_s: float) -> tuple[int | None, float | None]:
        """Take note of how long nobody has got on.

        Returns:
            How many times the threshold that is, where it is time to look, else None; and how long a
            standstill that was told of has lasted, where it has just ended, else None.
        """
        ended = None
        if still_s < self._still_s:
            self._pauses += 1
            if self._pauses > _WARMING_UP or self._told:
                self._longest_s = max(self._longest_s, self._still_s)
            ended = self._still_s if self._told else None
            self._looked, self._told = 0, False
        self._still_s = still_s
        due = max((item for item in _LOOKS if still_s >= item * self.threshold_s), default=0)
        if self._told or due <= self._looked:
            return None, ended
        self._looked = due
        return due, ended

    def found(self, patience: int | None) -> bool:
        """Return whether what was found is to be told now, given the patience that it asks for."""
        self._told = patience is not None and patience <= self._looked
        return self._told

    def forget(self) -> None:
        """Begin anew: what has passed was no standstill."""
        self._still_s, self._looked, self._told = 0.0, 0, False


class Watched(Protocol):
    """The workers that are watched."""

    @property
    def workers(self) -> Sequence[WorkerInfo]:
        """Who they are, in rank order."""
        ...

    def last_progress(self) -> float:
        """When any of them has last got on, on the clock of `time.monotonic`."""
        ...

    def observe(self, is_over: Callable[[], bool]) -> Mapping[int, RankState | None]:
        """Look at all of them; None for one that does not answer. Ends early where `is_over`."""
        ...


class StandstillWatch:
    """Watches one run from a thread of its own, until `close`.

    Args:
        watched: The workers.
        policy: When to look, and whom to tell.
    """

    def __init__(self, watched: Watched, policy: StandstillPolicy) -> None:
        self._watched = watched
        self._policy = policy
        self._suspicion = Suspicion(policy.patience_s)
        self._since = time.monotonic()
        self._is_paused = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster-standstill", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which nothing is watched: workers are replaced. What has passed does not count."""
        self._is_paused = True
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._is_paused = False

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(_TICK_S):
            try:
                self._look()
            except Exception as error:  # workers that come and go; the run itself tells of what matters
                logger.debug("The watch over the run failed: %r", error)

    def _look(self) -> None:
        if self._is_paused:
            self._suspicion.forget()
            return
        still_s = time.monotonic() - max(self._since, self._watched.last_progress())
        due, ended_s = self._suspicion.note(still_s)
        if ended_s is not None:
            self._tell(f"The run goes on, after a standstill of {ended_s:.0f} s.")
        if due is None:
            return
        found = self._diagnose(still_s)
        if found is not None and self._suspicion.found(found.patience):
            self._tell(found.text)

    def _diagnose(self, still_s: float) -> Autopsy | None:
        """Look at all ranks; None where they have got on meanwhile, or are being replaced."""
        workers = self._watched.workers
        began = time.monotonic()
        states = self._watched.observe(lambda: self._closed.is_set() or self._is_paused)
        moved = self._watched.last_progress() > began
        if moved or self._closed.is_set() or self._is_paused or self._watched.workers != workers:
            return None
        return diagnose(workers, states, still_s, self._policy.slow)

    def _tell(self, text: str) -> None:
        if self._policy.tell is not None:
            self._policy.tell(text)
        else:
            logger.warning("%s", text)
