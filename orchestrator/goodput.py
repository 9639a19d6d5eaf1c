"""Where a run's time went: every second of it belongs to one of eight kinds.

A rank's `Account` is always in one phase, and a change of phase is one reading of the clock. Phases change
where evaluations, checkpoints, recoveries and exchanges between ranks begin and end, never in a training
step. What training itself is made of is sampled: at most once a second, at a log point, the waits for the
next `WINDOW` batches are timed, and an epoch's first wait always is; how long gradients are waited for is
what `DistributedDataParallel` has sampled by itself. So the kinds sum up to the whole, and those of training
are estimates. On a GPU, whose work the host does not see, what is waited for at log points is compute too.

The clock cannot fail, and an account never ends a run.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, Protocol, TypeVar

from orchestrator.onlookers import Onlooker

P = ParamSpec("P")
T = TypeVar("T")

KINDS = ("start", "data", "compute", "communication", "evaluation", "checkpoint", "recovery", "idle")
"""The kinds of time, in the order in which they are told: what is before the first batch; waiting for
batches; steps, with their hooks; waiting for other ranks; validation and the sanity check; writing
checkpoints; coming back after the loss of a rank; and what is left: the end."""

TRAINING = ("data", "compute", "communication")
"""The kinds that training is made of."""

WINDOW = 16
"""Batches in a row whose waits are timed: as many as a loader usually has worker processes, or more."""
EVERY_S = 1.0
"""Seconds between two such windows, at least."""

_TRAIN = "train"
_numbers = itertools.count()


class Reads(Protocol):
    """What an account needs of a feed."""

    def look_on(self, onlooker: Onlooker) -> Callable[[], None]:
        """Let `onlooker` take each batch, by what it is given; return what ends that."""
        ...


class Account:
    """The seconds of one rank in one call.

    Args:
        now_s: Reads the clock, in seconds.

    Attributes:
        number: Which account of this process it is.
        phase: What runs now: a kind, or ``"train"``, which is told as compute, data and communication.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.number = next(_numbers)
        self.phase = "start"
        self._now_s = now_s
        self._since = self._began = now_s()
        self._seconds = dict.fromkeys((*KINDS, _TRAIN), 0.0)
        self._waited_s = self._watched_s = 0.0
        self._window_at = float("-inf")
        self._unwatch: Callable[[], None] = _nothing

    @property
    def age_s(self) -> float:
        """Seconds since the account was opened."""
        return self._now_s() - self._began

    @property
    def trained_s(self) -> float:
        """Seconds of training so far; asked while training."""
        return self._trained_s()

    @property
    def data_share(self) -> float | None:
        """The share of training in which a batch is waited for, as sampled; None before the first sample."""
        return min(1.0, self._waited_s / self._watched_s) if self._watched_s > 0 else None

    def switch(self, phase: str) -> str:
        """Begin a phase, and return the one that has ended."""
        now = self._now_s()
        before, self.phase = self.phase, phase
        self._seconds[before] += now - self._since
        self._since = now
        return before

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Be in a phase for a block; afterwards in the one before."""
        before = self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def counting(self, phase: str, function: Callable[P, T]) -> Callable[P, T]:
        """Return `function` as one whose seconds are those of a phase where it is called while training; a
        checkpoint, an evaluation or a recovery has its own exchanges.
        """

        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            if self.phase != _TRAIN:
                return function(*args, **kwargs)
            with self.during(phase):
                return function(*args, **kwargs)

        return run

    def seconds(self, waited_a_step_s: float = 0.0, steps: int = 0) -> dict[str, float]:
        """Return the seconds of each kind so far; their sum is the account's age.

        Args:
            waited_a_step_s: Seconds that a step waits for other ranks' gradients.
            steps: Steps that were made.
        """
        self.switch(self.phase)
        return split(self._seconds, self._waited_s, self._watched_s, waited_a_step_s * steps)

    # ---------------------------------------------------------------- waiting for data

    def watch(self, feed: Reads, *, first: bool = False) -> None:
        """Time the next waits for batches, unless it was done a moment ago.

        Args:
            feed: Where batches come from. It is looked on until they have come.
            first: The next batch is an epoch's first, for which worker processes may have to start: its wait
                is no sample, but counts as it is.
        """
        now = self._now_s()
        if first:
            self._unwatch()  # a window that an epoch was left in
        elif self._unwatch is not _nothing or now - self._window_at < EVERY_S:
            return
        self._window_at = now
        left, begun_s, waited_s = WINDOW, 0.0, 0.0

        def unwatch() -> None:
            self._unwatch = _nothing
            leave()

        def end(now_s: float) -> None:
            unwatch()
            self._watched_s += now_s - begun_s
            self._waited_s += waited_s

        def timed(advance: Callable[[], bool]) -> bool:
            nonlocal left, begun_s, waited_s, first
            if first:
                first = False
                with self.during("data"):
                    return advance()
            before = self._trained_s()
            if left == WINDOW:
                begun_s = before
            if not left:  # the window ends where the batch after it is asked for
                end(before)
                return advance()
            left -= 1
            more = advance()
            after = self._trained_s()
            waited_s += after - before
            if not more:
                end(after)
            return more

        leave = feed.look_on(timed)
        self._unwatch = unwatch

    def _trained_s(self) -> float:
        """Return the seconds of training so far; asked while training."""
        return self._seconds[_TRAIN] + self._now_s() - self._since


def _nothing() -> None:
    """Nothing is watched."""


def split(
    seconds: Mapping[str, float], waited_s: float, watched_s: float, communicated_s: float
) -> dict[str, float]:
    """Return the seconds of each of `KINDS`, with those of training dealt to its three.

    Args:
        seconds: By phase.
        waited_s: Of the seconds of training that were watched, those in which a batch was waited for.
        watched_s: The seconds of training that were watched.
        communicated_s: Seconds of training in which gradients were waited for.

    >>> split({"train": 10.0, "start": 2.0}, 0.5, 5.0, 3.0)["data"]
    1.0
    """
    train = seconds.get(_TRAIN, 0.0)
    data = train * min(1.0, waited_s / watched_s) if watched_s > 0 else 0.0
    communication = min(max(0.0, communicated_s), train - data)
    found = {kind: seconds.get(kind, 0.0) for kind in KINDS}
    found["data"] += data
    found["communication"] += communication
    found["compute"] += train - data - communication
    return found


class Total:
    """The seconds of a whole call, as its driver sees them: what rank 0 tells, and what is around it.

    Before rank 0 runs is the start; between the end of one rank 0 and the beginning of the next, which takes
    its place, is recovery; behind the last is idle time.

    Args:
        now_s: Reads the clock, in seconds.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._began = self._told_at = now_s()
        self._account: tuple[int, int] | None = None
        self._latest: dict[str, float] = {}
        self._done = dict.fromkeys(KINDS, 0.0)

    def take(self, account: tuple[int, int], seconds: Mapping[str, float]) -> None:
        """Take what an account of rank 0 says of itself up to now.

        Args:
            account: Whose it is: a process and a number.
            seconds: By kind.
        """
        now = self._now_s()
        if account != self._account:
            gap = max(0.0, now - sum(seconds.values()) - self._told_at)
            self._close()
            self._done["start" if self._account is None else "recovery"] += gap
            self._account = account
        self._latest = dict(seconds)
        self._told_at = now

    def _close(self) -> None:
        for kind, value in self._latest.items():
            self._done[kind] += value
        self._latest = {}

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each kind until now; their sum is the time since the beginning."""
        found = {kind: self._done[kind] + self._latest.get(kind, 0.0) for kind in KINDS}
        rest = self._now_s() - self._began - sum(found.values())
        kind = "start" if self._account is None else "idle"
        found[kind] = max(0.0, found[kind] + rest)
        return found


def describe(seconds: Mapping[str, float]) -> str:
    """Return the account in one line; kinds of less than a hundredth of the whole are left out.

    >>> describe({"start": 1.0, "compute": 8.0, "data": 1.0, "idle": 0.001})
    'Goodput 80%: 8.0 s of 10.0 s in training steps; start 1.0 s, data 1.0 s.'
    """
    whole = sum(seconds.values())
    compute = seconds.get("compute", 0.0)
    others = [
        f"{kind} {_short(seconds[kind])}"
        for kind in KINDS
        if kind != "compute" and seconds.get(kind, 0.0) >= max(0.01 * whole, 0.001)
    ]
    share = f"{compute / whole:.0%}" if whole else "0%"
    told = f"Goodput {share}: {_short(compute)} of {_short(whole)} in training steps"
    return f"{told}; {', '.join(others)}." if others else f"{told}."


def _short(seconds: float) -> str:
    """Return a length of time in few digits.

    >>> _short(0.0123), _short(7.21), _short(75), _short(8000)
    ('0.01 s', '7.2 s', '1:15', '2:13:20')
    """
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(kind: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a method of an engine, or of a trainer: its seconds are of this kind."""

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(method)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            owner: Any = args[0]
            account = getattr(getattr(owner, "engine", owner), "account", None)
            if account is None:
                return method(*args, **kwargs)
            with account.during(kind):
                return method(*args, **kwargs)

        return run

    return decorate
