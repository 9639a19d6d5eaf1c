"""A gang of worker processes that is started, used for any number of runs, and ended as one.

The workers are Ray actors in one placement group, joined by one process group. Nothing outlives the group:
after any failure, an interrupt of the driver included, its processes are killed and its placement is given
back at once, so a peer that waits in a collective cannot hang and nothing is left. A group that has failed
stays ended; start a new one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cluster import actors, network, noise, session
from cluster.dispatch import Dispatch, Listeners, OnAsk, OnEvent, OnOutput
from cluster.environment import defaulted
from cluster.errors import GroupError, PlacementError, StartError
from cluster.placement import Reservation, reserve
from cluster.process_group import StoreServer
from cluster.ranks import WorkerInfo, assign_ranks
from cluster.serialization import dump_call
from cluster.spec import GroupSpec
from cluster.worker import Assignment

T = TypeVar("T")


class WorkerGroup:
    """Worker processes under one driver. Make it with `WorkerGroup.start`.

    Attributes:
        spec: what was asked for.
        workers: who they are, in rank order.
        generation: how often the process group has been formed before this time.
    """

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.workers: tuple[WorkerInfo, ...] = ()
        self.generation = 0
        self._actors: list[Any] = []
        self._lives: list[Any] = []
        self._reservation: Reservation | None = None
        self._store: StoreServer | None = None
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
            group._start(make_room)
        except BaseException:
            group.shutdown()
            raise
        return group

    @property
    def alive(self) -> bool:
        """Whether the group has not been shut down and no worker's process has ended; asks no worker."""
        import ray

        if self._ended or not ray.is_initialized():
            return False
        return not ray.wait(self._lives, num_returns=1, timeout=0)[0]

    def run(
        self,
        fn: Callable[..., T],
        *args: object,
        on_event: OnEvent | None = None,
        on_ask: OnAsk | None = None,
        on_output: OnOutput | None = None,
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

        Returns:
            What the callable returned on each worker, in rank order.

        Raises:
            SerializationError: fn or args cannot be pickled; the group is still alive.
            GroupError: the group has ended, or another run is under way.
            WorkerDied: a worker's process ended.
            RemoteError: the callable raised what cannot be rebuilt here.
            BaseException: what the first failing worker's callable raised, or what a listener raised. The
                group has ended.
        """
        import ray

        payload = dump_call(fn, args)
        with self._lock:
            self._refuse_unless_idle()
            self._running = True
            self._runs += 1
        listeners = Listeners(on_event=on_event, on_ask=on_ask, on_output=on_output)
        try:
            stored = ray.put(payload)
            del payload  # it may be a whole model
            return Dispatch(self._runs, self._actors, self.workers, listeners).results(stored)
        except BaseException:
            self.shutdown()
            raise
        finally:
            self._running = False

    def signal(self, name: str, value: object = True) -> None:
        """Set `context.signals[name]` on all workers for the run under way, if any. Does not wait."""
        if not self._running or self._ended:
            return
        for actor in self._actors:
            actor.signal.options(concurrency_group="signal").remote(self._runs, name, value)

    def stacks(self) -> dict[int, str]:
        """Where every thread of each worker is, by rank; to be called by a listener or another thread."""
        if self._ended:
            raise GroupError("stacks() of a group that has ended. Start a new one.")
        return dict(enumerate(actors.stacks(self._actors)))

    def reform(self) -> None:
        """Form the process group anew, as the next generation; groups that earlier runs made are gone.

        Raises:
            StartError: the workers did not find each other in time; the group has ended.
        """
        with self._lock:
            self._refuse_unless_idle()
            self._running = True
        try:
            self.generation += 1
            self._join(time.monotonic() + self.spec.start_timeout_s)
        except BaseException:
            self.shutdown()
            raise
        finally:
            self._running = False

    def shutdown(self) -> None:
        """End the workers with their children and give their place back; returns once they are gone."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        import ray

        members, self._actors = self._actors, []
        lives, self._lives = self._lives, []
        try:
            if members and ray.is_initialized():
                actors.end(members, lives, self.workers)
        finally:
            if self._reservation is not None:
                self._reservation.remove()
            if self._store is not None:
                self._store.close()

    def _start(self, make_room: Callable[[], None] | None) -> None:
        """Connect, reserve, spawn, rank, join; each step for all workers at once."""
        deadline = time.monotonic() + self.spec.start_timeout_s
        session.connect()
        self._reservation = reserve(self.spec, deadline, make_room)
        spawned = self._actors = actors.spawn(self.spec, self._reservation)
        lives = self._lives = [actor.live.options(concurrency_group="life").remote() for actor in spawned]
        env = dict(self.spec.env)
        calls = [actor.prepare.remote(env) for actor in spawned]
        with defaulted(TORCH_CPP_LOG_LEVEL="ERROR"):  # hides a harmless line on missing reverse DNS
            import torch.distributed  # noqa: F401  now, while the workers import it too
        names = [f"worker {index}" for index in range(len(calls))]
        places = actors.collect(calls, names=names, doing="start", deadline=deadline)
        ranked = assign_ranks(places)
        self.workers = tuple(info for _, info in ranked)
        noise.mute_deaths(worker.pid for worker in self.workers)
        self._actors = [spawned[index] for index, _ in ranked]
        self._lives = [lives[index] for index, _ in ranked]
        self._check_nodes()
        host = network.address_towards(self._peer_of_driver())
        self._store = StoreServer(host, self.spec.collective_timeout_s)
        cwd = os.getcwd()
        told = [self._assignment(worker, cwd) for worker in self.workers]
        calls = [actor.assign.remote(each) for actor, each in zip(self._actors, told, strict=True)]
        actors.collect(calls, names=self._names(), doing="take its rank", deadline=deadline)
        self._join(deadline)

    def _join(self, deadline: float) -> None:
        calls = [actor.join.remote(self.generation) for actor in self._actors]
        actors.collect(calls, names=self._names(), doing="join the process group", deadline=deadline)

    def _names(self) -> list[str]:
        return [f"rank {worker.rank} on node {worker.node_ip}" for worker in self.workers]

    def _assignment(self, info: WorkerInfo, cwd: str) -> Assignment:
        assert self._store is not None
        others = [worker.node_ip for worker in self.workers if worker.node_ip != info.node_ip]
        return Assignment(
            info=info,
            store=self._store.address,
            threads=self.spec.worker_threads,
            peer=others[0] if others else info.node_ip,
            cwd=cwd,
            backend=self.spec.backend,
            collective_timeout_s=self.spec.collective_timeout_s,
        )

    def _peer_of_driver(self) -> str:
        """An address that the store must be reached from: a worker on another node, if there is one."""
        import ray

        here = ray.util.get_node_ip_address()
        return next((worker.node_ip for worker in self.workers if worker.node_ip != here), here)

    def _check_nodes(self) -> None:
        """A placement group from outside may not be spread as `num_nodes` says."""
        if self.spec.num_nodes is None:
            return
        per_node = self.spec.num_workers // self.spec.num_nodes
        if any(worker.local_world_size != per_node for worker in self.workers):
            placed = {worker.node_ip: worker.local_world_size for worker in self.workers}
            raise PlacementError(
                f"num_nodes={self.spec.num_nodes} wants {per_node} workers on each node, "
                f"the placement group has them as {placed}. "
                "Make it with STRICT_SPREAD, or leave num_nodes out."
            )

    def _refuse_unless_idle(self) -> None:
        if self._ended:
            raise GroupError("The worker group has ended, by shutdown() or after a failure. Start a new one.")
        if self._running:
            raise GroupError(
                "The worker group is running a callable already. Wait for it, or start a second group."
            )
