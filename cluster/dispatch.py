"""Drives one run of a callable on all workers: events in, answers out, then results or the first failure.

Each worker has two open calls: its run, and a long poll for what it says. `ray.wait` on all of them wakes the
driver within a millisecond or two of anything happening; nothing is polled by sleeping. Events of one rank
reach `on_event` in the order they were emitted and before the run returns. When a rank fails, the first cause
is raised; ranks that only lost a peer give the others a moment to be named as the cause. Behind an exception
the other ranks are freed from their collectives, so that they end too and all can be used again. In a run
that recovers, the loss of a process is no failure while it can be replaced: the others go on, or, where one
of them cannot, all end and `RunLost` is raised.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cluster.errors import ClusterError, GroupError, RunLost
from cluster.failure import Failure, choose_first, describe_death, explain_death, rebuild
from cluster.heartbeat import ENDED
from cluster.mailbox import Item
from cluster.ranks import WorkerInfo
from cluster.recovery import Recovered
from cluster.serialization import Parcel, dump_fast, load
from cluster.worker import Success

_POLL_S = 30.0
_CAUSE_S = 3.0  # a broken connection waits so long for its cause: a lost node shows after about 2 s
_BROKEN_S = 6.0  # a rank that lost a peer waits so long for the loss of a process to be found
_DRAIN_S = 0.2
_FREED_S = 1.0  # whoever is freed from a collective ends within milliseconds
_LAST_WORDS_S = 0.05  # longer than a poll lingers for a burst

INVITATION = "invitation"
"""The signal that invites to a generation with one more worker: (its number, its ranks in order)."""
OnEvent = Callable[[int, object], None]
OnAsk = Callable[[int, object], object]
OnOutput = Callable[[str, str], None]
OnRankOutput = Callable[[int, str, str], None]
OnRecovered = Callable[[Recovered], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """Who is told what while a run is under way; all are called in the thread that called `run`."""

    on_event: OnEvent | None = None
    on_ask: OnAsk | None = None
    on_output: OnOutput | None = None
    on_rank_output: OnRankOutput | None = None
    on_recovered: OnRecovered | None = None


class Members(Protocol):
    """The group whose workers run: it may replace them meanwhile.

    Attributes:
        workers: who they are, in rank order.
        actors: their actors, in rank order.
    """

    @property
    def workers(self) -> Sequence[WorkerInfo]:
        """Who they are, in rank order."""
        ...

    @property
    def actors(self) -> Sequence[Any]:
        """Their actors, in rank order."""
        ...

    @property
    def present(self) -> Sequence[int]:
        """The ranks that have a process, in the order of the process group."""
        ...

    @property
    def generation(self) -> int:
        """The generation of the process group that is wanted."""
        ...

    @property
    def look_s(self) -> float | None:
        """How often `recruits` wants to be asked, in seconds; None where only a loss changes anything."""
        ...

    def recruits(self) -> list[Any]:
        """What tells when somebody is up that the run could take in."""
        ...

    def admit(self, ready: Any) -> int | None:
        """Give a rank to who is up, to make itself ready; None where it was lost before."""
        ...

    def include(self, rank: int) -> None:
        """Take in who is ready: it waits for the next generation."""
        ...

    def dismiss(self, rank: int) -> None:
        """End who was given a rank and is not taken in."""
        ...

    def cause_of_death(self, rank: int) -> str | None:
        """Why the group itself has counted the rank as lost, if it has."""
        ...

    def replace(self, lost: dict[int, str]) -> Recovered | None:
        """Replace these ranks' workers; None if this run does not recover from it."""
        ...

    def give_up(self) -> None:
        """Make the callables that go on, or wait to rejoin, end. Does not wait for it."""
        ...


class Dispatch:
    """One run on all workers of a group.

    Args:
        run: The number of this run.
        members: The group.
        listeners: Who is told what.
        recovers: The callable may go on after a loss.
        frees: Behind an exception the other ranks are freed and waited for.

    Attributes:
        is_over: Behind `results` that raised: the callables have ended on all ranks, and nobody was lost.
    """

    def __init__(
        self, run: int, members: Members, listeners: Listeners, *, recovers: bool, frees: bool
    ) -> None:
        self._run = run
        self._members = members
        self._listeners = listeners
        self._recovers = recovers
        self._frees = frees
        self.is_over = False
        self._broken_since: float | None = None
        self._has_lost = False
        self._given_up = False
        self._runs: dict[Any, int] = {}
        self._polls: dict[Any, int] = {}
        self._acknowledged: dict[int, int] = {}
        self._joiner: int | None = None
        self._recruits: list[Any] = []
        self._results: dict[int, Parcel] = {}
        self._failures: dict[int, Failure] = {}

    def results(self, payload: Any) -> list[Any]:
        """Start the run and see it through.

        Args:
            payload: Ray's reference to the pickled callable and arguments.

        Returns:
            What each rank's callable returned, in rank order.

        Raises:
            RunLost: after a loss that was made good, some rank could not go on; all have ended.
            BaseException: the first cause of failure, or what a listener raised. The run may still go on in
                the workers.
        """
        for rank in list(self._members.present):
            self._begin(rank, payload)
        deadline: float | None = None
        while self._runs or self._polls:
            self._wait(deadline)
            self._admit(payload)
            if self._results:  # it comes too late
                self._dismiss(invited=True)
            if self._recovers and self._recover(payload):
                deadline = None
            elif self._failures:
                deadline = deadline or time.monotonic() + (_BROKEN_S if self._recovers else _CAUSE_S)
                certain = any(not failure.is_lost_run for failure in self._failures.values())
                if certain or not self._runs or time.monotonic() >= deadline:
                    with contextlib.suppress(Exception):  # a listener that fails now must not hide the cause
                        self._drain()
                    self._raise_first()
        if self._given_up:
            raise RunLost("The run cannot go on after the loss of a worker. Call it again.")
        if self._failures:
            self._raise_first()
        return [load(self._results.pop(rank)) for rank in self._members.present]

    def _begin(self, rank: int, payload: Any) -> None:
        self._acknowledged[rank] = -1
        tells_all = self._listeners.on_rank_output is not None
        actor = self._members.actors[rank]
        self._runs[actor.run.remote(self._run, payload, self._recovers, tells_all)] = rank
        self._poll(rank)

    def _wait(self, deadline: float | None) -> None:
        """Wait until a call has something to say, and take all that have; at most until `deadline`, or until
        a lost connection without a lost process is due for another try.
        """
        import ray

        if self._broken_since is not None and self._recovers:
            retry = self._broken_since + _BROKEN_S
            deadline = retry if deadline is None else min(deadline, retry)
        self._recruits = []
        if (
            self._recovers
            and self._joiner is None
            and not (self._results or self._failures or self._given_up)
        ):
            self._recruits = self._members.recruits()
            if (look_s := self._members.look_s) is not None:
                look = time.monotonic() + look_s
                deadline = look if deadline is None else min(deadline, look)
        open_calls = [*self._runs, *self._polls, *self._recruits]
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _ = ray.wait(open_calls, num_returns=1, timeout=timeout)
        if ready:
            ready, _ = ray.wait(open_calls, num_returns=len(open_calls), timeout=0)
        self._recruits = [call for call in ready if call in self._recruits]
        for call in ready:
            if call not in self._recruits:
                self._take(call)

    def _admit(self, payload: Any) -> None:
        """Give a rank to one who is up, so that it makes itself ready."""
        if not self._recruits or self._failures or self._broken_since is not None:
            return
        number = self._members.admit(self._recruits[0])
        if number is not None:
            self._joiner = number
            self._begin(number, payload)

    def _invite(self, joiner: int) -> None:
        """Tell all of a generation with one who has come and is ready, to be formed behind a step."""
        self._members.include(joiner)
        invitation = self._members.generation, tuple(self._members.present)
        for rank in self._members.present:
            if rank != joiner:
                lane = self._members.actors[rank].signal.options(concurrency_group="signal")
                lane.remote(self._run, INVITATION, invitation)

    def _is_coming(self, rank: int | None) -> bool:
        """Whether a rank was given to who makes itself ready, and the others do not wait for it yet."""
        return rank is not None and rank == self._joiner and rank not in self._members.present

    def _dismiss(self, *, invited: bool = False) -> None:
        """Do without the one that is coming, if any; also where the others were `invited` to it already."""
        if self._joiner is not None and (invited or self._is_coming(self._joiner)):
            self._forget(self._joiner)
            self._members.dismiss(self._joiner)
            self._joiner = None

    def _recover(self, payload: Any) -> bool:
        """Do what a loss needs; return whether the run, or its end in order, goes on.

        Lost workers are replaced. If a callable has ended over a loss, or had returned before it, the run is
        given up: the other ranks are freed, so that they end too.
        """
        failures = self._failures
        if any(not (item.is_death or item.is_lost_run) for item in failures.values()):
            return False
        lost = {rank: item.message for rank, item in failures.items() if item.is_death}
        if self._given_up and not lost:
            failures.clear()  # one more rank of it has ended
            return True
        gives_up = len(lost) < len(failures) or bool(lost and self._results)
        overdue = self._broken_since is not None and time.monotonic() >= self._broken_since + _BROKEN_S
        if not lost and not (overdue if not gives_up else self._has_lost):
            return False
        if lost or not gives_up:
            recovered = self._members.replace(lost)
            if recovered is None:
                return False
            self._has_lost = True
            for rank in recovered.causes:
                self._forget(rank)
                if rank == self._joiner:
                    self._joiner = None
            for rank in recovered.ranks:
                if not (gives_up or self._given_up):
                    self._begin(rank, payload)
            if recovered.causes and self._listeners.on_recovered is not None:
                self._listeners.on_recovered(recovered)
        self._broken_since = None
        failures.clear()
        if gives_up and not self._given_up:
            self._given_up = True
            self._dismiss()
            self._members.give_up()
        return True

    def _forget(self, rank: int) -> None:
        """Take no more of a rank's calls: its process is gone."""
        self._runs = {call: other for call, other in self._runs.items() if other != rank}
        self._polls = {call: other for call, other in self._polls.items() if other != rank}

    def _poll(self, rank: int) -> None:
        lane = self._members.actors[rank].poll.options(concurrency_group="poll")
        self._polls[lane.remote(self._run, self._acknowledged[rank], _POLL_S)] = rank

    def _take(self, call: Any) -> None:
        """Take one finished call."""
        import ray

        rank = self._runs.pop(call, None)
        rank = self._polls.pop(call, None) if rank is None else rank
        if rank is None:  # the other call of this rank has told of its death
            return
        try:
            value = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise ClusterError(
                f"Rank {rank} failed outside its callable: {error.cause!r}. "
                "This is a fault of this package: please report it."
            ) from error
        except ray.exceptions.RayError as error:
            if self._is_coming(rank):
                self._dismiss()
                return
            verdict, told = self._members.cause_of_death(rank), explain_death(str(error))
            cause = told if verdict is None or (verdict == ENDED and "ray.kill" not in told) else verdict
            self._failures.setdefault(rank, describe_death(rank, cause))
            self._forget(rank)
            return
        if isinstance(value, Success):
            self._results[rank] = value.data
        elif isinstance(value, Failure):
            self._failures[rank] = value
        else:
            for item in value.items:
                self._acknowledged[rank] = item.number
                self._tell(rank, item)
            if not value.closed:
                self._poll(rank)

    def _tell(self, rank: int, item: Item) -> None:
        """Pass one item to its listener."""
        if item.kind in ("broken", "joined"):
            self._broken_since = time.monotonic() if item.kind == "broken" else None
            if item.kind == "joined" and rank == self._joiner:
                self._joiner = None
        elif item.kind == "arrived":
            if self._is_coming(rank):  # else it was needed before, and is awaited
                self._invite(rank)
        elif item.kind == "event":
            if self._listeners.on_event is not None:
                self._listeners.on_event(rank, load(_bytes(item)))
        elif item.kind == "ask":
            if self._listeners.on_ask is None:
                raise GroupError(
                    f"Rank {rank} asked {load(_bytes(item))!r} but run() was given no on_ask. "
                    "Pass on_ask to run()."
                )
            answer = dump_fast(
                self._listeners.on_ask(rank, load(_bytes(item))), "the answer that on_ask returned"
            )
            lane = self._members.actors[rank].answer.options(concurrency_group="signal")
            lane.remote(self._run, item.number, answer)
        else:
            self._tell_output(rank, item.kind, str(item.data))

    def _tell_output(self, rank: int, stream: str, text: str) -> None:
        """Pass on what a rank has printed: rank 0's is shown."""
        listeners = self._listeners
        if listeners.on_rank_output is not None:
            listeners.on_rank_output(rank, stream, text)
        if rank:
            return
        if listeners.on_output is not None:
            listeners.on_output(stream, text)
        else:
            target = sys.stderr if stream == "stderr" else sys.stdout
            target.write(text)
            target.flush()

    def _drain(self) -> None:
        """Take what has arrived: other failures, the last words of the ranks that failed, and what the others
        have just said.
        """
        import ray

        until = time.monotonic() + _DRAIN_S
        while calls := [c for c, rank in self._polls.items() if rank in self._failures]:
            ready, _ = ray.wait(calls, num_returns=1, timeout=max(0.0, until - time.monotonic()))
            if not ready:
                break
            for call in ready:
                self._take(call)
        open_calls = [*self._runs, *self._polls]
        if open_calls:
            for call in ray.wait(open_calls, num_returns=len(open_calls), timeout=_LAST_WORDS_S)[0]:
                self._take(call)

    def _raise_first(self) -> None:
        first = choose_first(list(self._failures.values()))
        finished = sorted(self._results.keys() - self._failures.keys())
        cause = rebuild(first, self._members.workers, finished)
        if self._frees and isinstance(cause, Exception) and not (first.is_death or first.is_lost_run):
            with contextlib.suppress(Exception):  # what goes wrong now must not hide the cause
                self.is_over = self._end_others()
        raise cause from None

    def _end_others(self) -> bool:
        """Free the callables that go on, and wait a moment for them and their last words; return whether all
        have ended and nobody was lost. What they ask is not answered any more.
        """
        import ray

        if self._has_lost or self._joiner is not None:
            return False
        if self._runs:
            self._members.give_up()
        self._listeners = replace(self._listeners, on_ask=None)
        until = time.monotonic() + _FREED_S
        while calls := [*self._runs, *self._polls]:
            left_s = until - time.monotonic()  # whoever talks on and on has no more time than others
            ready, _ = ray.wait(calls, timeout=left_s) if left_s > 0 else ([], calls)
            if not ready:
                return False
            self._take(ready[0])
        return not any(failure.is_death for failure in self._failures.values())


def _bytes(item: Item) -> bytes:
    assert isinstance(item.data, bytes)
    return item.data
