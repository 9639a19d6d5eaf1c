"""A gang of worker processes that is started, used for any number of runs, and ended as one.

The workers are Ray actors in one placement group, joined by one process group. Nothing outlives the group:
after a failure, an interrupt of the driver included, its processes are killed and its placement is given back
at once, so a peer that waits in a collective cannot hang and nothing is left. A group that has ended so stays
ended; start a new one. Only behind an exception of the callable, on CPUs, it goes on where nothing of the run
is left in any worker.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cluster import actors, preemption
from cluster.dispatch import Dispatch, Listeners, OnAsk, OnEvent, OnOutput, OnRankOutput, OnRecovered
from cluster.errors import GroupError, RunLost, StartError
from cluster.failure import explain_death
from cluster.preemption import DrainWatch, Notice, OnNotice
from cluster.rank_state import RankState
from cluster.ranks import WorkerInfo
from cluster.recovery import Recovered, RecoveryPolicy
from cluster.resizing import ResizableRoster
from cluster.serialization import dump_call
from cluster.spec import GroupSpec
from cluster.standstill import StandstillPolicy, StandstillWatch

T = TypeVar("T")
_GIVING_UP_S = 10.0
_LOOK_S = 0.5


class WorkerGroup:
    """Worker processes under one driver. Make it with `WorkerGroup.start`.

    Attributes:
        spec: what was asked for.
    """

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self._roster = ResizableRoster(spec)
        self._policy: RecoveryPolicy | None = None
        self._giving_up: list[Any] = []  # calls that may not have arrived yet
        self._is_given_up = False  # the process group is, by a run that failed: the next one forms it anew
        self._noticed: set[int] = set()  # ranks that were told to go in this run
        self._watch: StandstillWatch | None = None
        self._runs = 0
        self._running = False
        self._ended = False
        self._lock = threading.Lock()

    @classmethod
    def start(cls, spec: GroupSpec, make_room: Callable[[], None] | None = None) -> WorkerGroup:
        """Connect to Ray if needed, start the workers and connect them; returns once all are ready.

        Args:
            spec: what to start.
            make_room: called once if there is no room at once, to free what the caller can do without.

        Raises:
            SessionError: Ray cannot be reached or started.
            PlacementError: there is no room.
            StartError: the workers did not come up, or did not find each other, within the spec's start
                timeout.
        """
        if sys.platform == "win32":
            raise StartError(
                "Worker groups run on Linux and macOS, this is Windows. Use one worker, "
                "which runs in this process, or WSL."
            )
        group = cls(spec)
        try:
            group._roster.start(make_room)
        except BaseException:
            group.shutdown()
            raise
        return group

    @property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """Who they are, in rank order."""
        return self._roster.workers

    @property
    def actors(self) -> list[Any]:
        """Their actors, in rank order."""
        return self._roster.actors

    @property
    def generation(self) -> int:
        """How often the process group has been formed before this time."""
        return self._roster.generation

    @property
    def alive(self) -> bool:
        """Whether the group has not been shut down and no worker's process has ended; asks no worker."""
        import ray

        whole = not self._roster.resized
        return not self._ended and ray.is_initialized() and whole and self._roster.alive

    def run(
        self,
        fn: Callable[..., T],
        *args: object,
        on_event: OnEvent | None = None,
        on_ask: OnAsk | None = None,
        on_output: OnOutput | None = None,
        on_rank_output: OnRankOutput | None = None,
        on_recovered: OnRecovered | None = None,
        on_notice: OnNotice | None = None,
        recovery: RecoveryPolicy | None = None,
        standstill: StandstillPolicy | None = None,
    ) -> list[T]:
        """Call `fn(context, *args)` on every worker and wait for all; each gets its own copy of fn and args.

        It is called in a thread that is not its process's main thread, so it cannot install signal handlers.

        Args:
            fn: the callable; its first argument is the `WorkerContext`.
            args: further arguments, pickled once for all workers.
            on_event: called with (rank, event) for each event that a worker emits.
            on_ask: called with (rank, question); what it returns is the answer.
            on_output: called with ("stdout" or "stderr", text) as rank 0 prints. None: written to this
                process's streams.
            on_rank_output: called with (rank, "stdout" or "stderr", text) as any rank prints. None: other
                ranks' text stays in Ray's log files.
            on_recovered: called after lost workers were replaced.
            on_notice: called, from any thread, with each `Notice` that workers must go: Ray drains their
                node, or they got a SIGTERM and heed it. The loss of such a worker is no failure that counts.
            recovery: how much is survived: lost workers are replaced, and the callable, which must be made
                for it, goes on with `context.rejoin()`. None: the first loss ends the run.
            standstill: when it is looked into why nobody gets on, and who is told; the callable says how it
                gets on with `context.show_progress`. None: never.

        Returns:
            What the callable returned on each worker, in rank order.

        Raises:
            SerializationError: fn or args cannot be pickled; the group is still alive.
            GroupError: the group has ended, or another run is under way.
            WorkerDied: a worker's process ended.
            RunLost: with `recovery`, a worker was lost and the others could not go on without it. It has been
                replaced, the group is alive, and the call can be made again.
            RemoteError: the callable raised what cannot be rebuilt here.
            BaseException: what the first failing worker's callable raised, or what a listener raised. The
                group is still alive where this is an exception of the callable, which runs on CPUs, has lost
                nobody, has ended on all workers (failing collectives make it do so), and has left there
                neither a process nor a thread; else it has ended.
            StartError: the run before had failed, and the workers did not find each other again.
        """
        import ray

        payload = dump_call(fn, args)
        with self._lock:
            self._refuse_unless_idle()
            self._running = True
            self._runs += 1
            self._policy = recovery
            self._noticed = set()
        watch: DrainWatch | None = None
        if on_notice is not None:
            noticed = self._noting(on_notice)
            on_event = preemption.sorted_out(on_event, noticed)
            watch = DrainWatch(lambda: self.workers, noticed)
        listeners = Listeners(
            on_event=on_event,
            on_ask=on_ask,
            on_output=on_output,
            on_rank_output=on_rank_output,
            on_recovered=on_recovered,
        )
        on_cpus = not self.spec.resource("GPU")  # what has used CUDA may have spoilt its process
        dispatch = Dispatch(self._runs, self, listeners, recovers=recovery is not None, frees=on_cpus)
        try:
            if self._is_given_up:
                self._form_anew()
            self._roster.deliver()
            if recovery is not None and recovery.max_workers is not None and recovery.room is None:
                self._roster.call_more(recovery.max_workers)
            stored = ray.put(payload)
            del payload  # it may be a whole model
            if standstill is not None:
                self._watch = StandstillWatch(self, standstill)
            return dispatch.results(stored)
        except RunLost:
            self._form_anew()
            raise
        except BaseException:
            self._is_given_up = True
            if not (dispatch.is_over and self._is_clean()):
                self.shutdown()
            raise
        finally:
            self._running = False
            if self._watch is not None:
                self._watch.close()
                self._watch = None
            if watch is not None:
                watch.close()

    def _is_clean(self) -> bool:
        """Whether nothing of a run that failed is left in the workers, and none of them has to go."""
        try:
            return not self._noticed and actors.are_clean(self._roster.present_actors)
        except BaseException:
            self.shutdown()
            raise

    def announce(self, name: str, value: object, timeout_s: float = 10.0) -> list[Any]:
        """Set `context.signals[name]` on all workers, and return what each one's `context.position` said
        right behind that: None from one whose callable has not begun. From any thread, while a run is under
        way.

        Raises:
            GroupError: no run is under way, or not all workers have answered; some may know of the value.
        """
        import ray

        if not self._running or self._ended:
            raise GroupError(f"announce({name!r}) without a run. Call it while one is under way.")
        present = self._roster.present_actors
        lanes = [actor.announce.options(concurrency_group="signal") for actor in present]
        try:
            return list(ray.get([lane.remote(self._runs, name, value) for lane in lanes], timeout=timeout_s))
        except ray.exceptions.RayError as error:
            raise GroupError(
                f"announce({name!r}) did not reach all workers: {explain_death(str(error))}. "
                "The run itself will tell."
            ) from None

    def signal(self, name: str, value: object = True) -> None:
        """Set `context.signals[name]` on all workers for the run under way, if any. Does not wait."""
        if not self._running or self._ended:
            return
        for actor in self._roster.present_actors:
            actor.signal.options(concurrency_group="signal").remote(self._runs, name, value)

    def stacks(self) -> dict[int, str]:
        """Where every thread of each worker is, by rank; to be called by a listener or another thread."""
        if self._ended:
            raise GroupError("stacks() of a group that has ended. Start a new one.")
        found = actors.stacks(self._roster.present_actors)
        return dict(zip(self._roster.present, found, strict=True))

    def last_progress(self) -> float:
        """When any worker's callable has last got on, on the clock of `time.monotonic`."""
        return self._roster.last_progress()

    def observe(self, is_over: Callable[[], bool] = lambda: False) -> Mapping[int, RankState | None]:
        """What each worker is doing, by rank: None for one that does not answer. From any thread."""
        ranks = list(self._roster.present)
        workers = [self.workers[rank] for rank in ranks]
        found = actors.observe([self.actors[rank] for rank in ranks], workers, is_over)
        return dict(zip(ranks, found, strict=True))

    def reform(self) -> None:
        """Form the process group anew, as the next generation; groups that earlier runs made are gone.

        Raises:
            StartError: the workers did not find each other in time; the group has ended.
        """
        with self._lock:
            self._refuse_unless_idle()
            self._running = True
        try:
            self._form_anew()
        finally:
            self._running = False

    def shutdown(self) -> None:
        """End the workers with their children and give their place back; returns once they are gone."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._roster.end()

    def cause_of_death(self, rank: int) -> str | None:
        """Why a rank was counted as lost, when it was its silence that said so."""
        return self._roster.cause_of_death(rank)

    def replace(self, lost: dict[int, str]) -> Recovered | None:
        """Replace lost workers during a run, as far as its policy allows. Called by the run itself."""
        policy = self._policy
        counted = len(lost.keys() - self._noticed) if lost else 1
        if policy is None or (counted and not policy.take(counted)):
            return None
        began = time.monotonic()
        with contextlib.nullcontext() if self._watch is None else self._watch.paused():
            if policy.min_workers is not None:
                causes, came = self._roster.shrink(lost, policy.wait_s, policy.min_workers)
                return Recovered(
                    ranks=tuple(came),
                    causes=causes,
                    generation=self.generation,
                    replaced_s=time.monotonic() - began,
                    elastic=True,
                )
            causes = self._roster.replace(lost, policy.wait_s)
        return Recovered(
            ranks=tuple(sorted(causes)),
            causes=causes,
            generation=self.generation,
            replaced_s=time.monotonic() - began,
        )

    def hand_over(self, notice: Notice) -> bool:
        """End the workers that a notice names, which others replace or do without, where the run under way
        survives that and nobody has to be waited for. From any thread.

        Returns:
            Whether it was done; else they go on until they are gone.
        """
        policy = self._policy
        if policy is None or not self._running or self._ended:
            return False
        ranks = [rank for rank in notice.ranks if rank in self._roster.present]
        least = policy.min_workers
        fewer = least is not None and len(self._roster.present) - len(ranks) >= least
        return not ranks or self._roster.hand_over(
            ranks, notice.reason, notice.deadline, fewer=fewer, is_over=lambda: not self._running
        )

    @property
    def present(self) -> list[int]:
        """The ranks that have a process, in the order of the process group."""
        return self._roster.present

    @property
    def look_s(self) -> float | None:
        """How often the run asks for recruits, in seconds, where the room for them changes."""
        return None if self._policy is None or self._policy.room is None else _LOOK_S

    def recruits(self) -> list[Any]:
        """Return what tells when somebody is up that this run could take in. Called by the run itself."""
        policy = self._policy
        if policy is None or policy.min_workers is None:
            return []
        if policy.room is not None:
            self._fit(policy.room(self._roster.called))
        return self._roster.recruits(policy.max_workers or self.spec.num_workers)

    def admit(self, ready: Any) -> int | None:
        """Give a rank to who is up, to make itself ready. Called by the run itself."""
        return self._roster.admit(ready)

    def include(self, rank: int) -> None:
        """Take in who is ready: it waits for the others to form the next generation. Called by the run."""
        self._roster.include(rank)

    def dismiss(self, rank: int) -> None:
        """End who was given a rank and is not taken in. Called by the run itself."""
        self._roster.dismiss(rank)

    def _fit(self, most: int) -> None:
        """Ask for workers up to `most`, or give back those that were called since the start."""
        if most > self._roster.called:
            self._roster.call_more(most)
        elif most < self._roster.called:
            self._noticed.update(self._roster.give_back())

    def _noting(self, on_notice: OnNotice) -> OnNotice:
        """Return a listener that remembers the ranks of each notice before it is passed on."""

        def note(notice: Notice) -> None:
            self._noticed.update(notice.ranks)
            on_notice(notice)

        return note

    def give_up(self) -> None:
        """Make the callables of the run end that wait for others. Called by the run itself."""
        lanes = [actor.give_up.options(concurrency_group="control") for actor in self._roster.present_actors]
        self._giving_up = [lane.remote() for lane in lanes]

    def _form_anew(self) -> None:
        import ray

        try:
            if self._giving_up:  # one that comes late would give up the next generation too
                ray.wait(self._giving_up, num_returns=len(self._giving_up), timeout=_GIVING_UP_S)
                self._giving_up = []
            self._roster.generation += 1
            self._roster.join(time.monotonic() + self.spec.start_timeout_s)
            self._is_given_up = False
        except BaseException:
            self.shutdown()
            raise

    def _refuse_unless_idle(self) -> None:
        if self._ended:
            raise GroupError("The worker group has ended, by shutdown() or after a failure. Start a new one.")
        if self._running:
            raise GroupError(
                "The worker group is running a callable already. Wait for it, or start a second group."
            )
