"""The workers of a group: who they are, and how lost ones are replaced.

Ranks stay what they are from the start to the end; the process that has a rank may change. Every worker gives
signs of life to a server in this process, so that a lost one is known in milliseconds, a silent one in a few
seconds; it is then killed, which is how the run that waits for it learns. Spares are workers in reserved
places of their own, with everything imported; one that has taken a lost rank's place is made up for by a new
worker in the lost one's, when there is room again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster import actors as staff
from cluster import network, noise, preflight, session
from cluster.delivery import Delivery
from cluster.environment import defaulted
from cluster.errors import PlacementError, StartError
from cluster.heartbeat import ENDED, HeartbeatServer
from cluster.inquiry import Inquiry
from cluster.placement import Reservation, name_places, reserve
from cluster.process_group import StoreServer
from cluster.ranks import Place, WorkerInfo, assign_ranks, replace_worker
from cluster.recruits import Recruit, Recruits
from cluster.spec import GroupSpec
from cluster.worker import Assignment

_KNOWS_BETTER_S = 0.25
_ENDING_S = 0.1
_HEARD_S = 5.0  # for signs of progress of all ranks to arrive, and at most
_HEARD = 0.25  # of the time that is left
_log = logging.getLogger("cluster")


class Roster:
    """The workers of one group.

    Attributes:
        workers: who they are, in rank order.
        actors: their actors, in rank order.
        generation: of the process group; each number is used once.
        present: the ranks that have a process, in the order of the process group: all of them, here.
    """

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.workers: tuple[WorkerInfo, ...] = ()
        self.actors: list[Any] = []
        self.generation = 0
        self._lives: list[Any] = []
        self._numbers: list[int] = []  # of each rank's process, as the heartbeat server knows it
        self._recruits = Recruits(spec)
        self._places: list[tuple[Reservation, int]] = []  # each rank's bundle
        self._reservation: Reservation | None = None
        self._spare_reservation: Reservation | None = None
        self._store: StoreServer | None = None
        self._heartbeat: HeartbeatServer | None = None
        self._verdicts: dict[int, str] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._inquiry = Inquiry(self._ending)
        self._delivery = Delivery()
        self.present: list[int] = list(range(spec.num_workers))

    @property
    def alive(self) -> bool:
        """Whether no worker's process has ended; asks no worker."""
        import ray

        return not ray.wait(self._lives, num_returns=1, timeout=0)[0]

    @property
    def present_actors(self) -> list[Any]:
        """The actors of those that are there, in the order of the process group."""
        return [self.actors[rank] for rank in self.present] if self.actors else []

    def start(self, make_room: Callable[[], None] | None) -> None:
        """Connect, reserve, spawn, rank, join; each step for all workers at once."""
        import ray

        session.connect()  # Ray's own start has a time of its own
        spec, deadline = self.spec, time.monotonic() + self.spec.start_timeout_s
        reservation = self._reservation = reserve(spec, deadline, make_room)
        bundles = reservation.bundle_of_worker
        recruits = [self._recruits.call(reservation, bundle) for bundle in bundles]
        with defaulted(TORCH_CPP_LOG_LEVEL="ERROR"):  # hides a harmless line on missing reverse DNS
            import torch.distributed  # noqa: F401  now, while the workers import it too
        places = staff.collect(
            [recruit.ready for recruit in recruits],
            names=name_places(reservation),
            doing="start",
            deadline=deadline,
        )
        preflight.check_versions(
            preflight.report(), {place.node_ip: place.report for place in places if place.report}
        )
        self._recruits.coming.clear()
        ranked = assign_ranks(places, first=ray.get_runtime_context().get_node_id())
        self.workers = tuple(info for _, info in ranked)
        self.actors = [recruits[index].actor for index, _ in ranked]
        self._lives = [recruits[index].life for index, _ in ranked]
        self._places = [(reservation, bundles[index]) for index, _ in ranked]
        noise.mute_deaths(worker.pid for worker in self.workers)
        self._check_nodes()
        host = network.address_towards(self._peer_of_driver())
        self._store = StoreServer(host, spec.collective_timeout_s)
        self._recruits.store = self._store.address
        driver = (self._store.address.host, self._store.address.port)
        staff.check_links(self.actors, self.workers, driver, deadline)
        self._heartbeat = HeartbeatServer(host, self._inquiry.state_of, self._bury)
        self._assign(range(len(self.workers)), deadline)
        self.join(deadline)
        self._call_spares(deadline, make_room)

    def join(self, deadline: float) -> None:
        """Form the process group of the present generation."""
        members, names = tuple(self.present), self._names()
        calls = [self.actors[rank].join.remote(self.generation, members) for rank in members]
        staff.collect(
            calls, names=[names[rank] for rank in members], doing="join the process group", deadline=deadline
        )

    def deliver(self, ranks: Sequence[int] | None = None) -> None:
        """Bring the user's modules to all workers, or to those of `ranks`, which are new."""
        chosen = [worker for worker in self.workers if ranks is None or worker.rank in ranks]
        self._delivery.bring(self.actors, chosen, self.spec.start_timeout_s, new=ranks is not None)

    def cause_of_death(self, rank: int) -> str | None:
        """Why a rank was counted as lost, when that was decided here."""
        with self._lock:
            return self._verdicts.get(self._numbers[rank]) if rank < len(self._numbers) else None

    def last_progress(self) -> float:
        """When any worker's callable has last got on, on the clock of `time.monotonic`; 0.0 if none has."""
        return 0.0 if self._heartbeat is None else self._heartbeat.last_change()

    def replace(self, lost: dict[int, str], wait_s: float) -> dict[int, str]:
        """Replace the workers of lost ranks, and of those that are lost meanwhile, and free the survivors.

        Args:
            lost: why, by rank; may be empty, then the survivors form a new generation as they are.
            wait_s: seconds to wait for replacements.

        Returns:
            Why, by rank, for all that were replaced.

        Raises:
            StartError: no replacement came in time.
        """
        deadline = time.monotonic() + wait_s
        replaced: dict[int, str] = {}
        todo = dict(lost)
        self.generation += 1
        while todo:
            for rank in todo:
                self._fence(rank)
            replaced |= todo
            self._free([rank for rank in range(len(self.actors)) if rank not in replaced])
            for rank in todo:
                self._fill(rank, deadline)
            todo = {rank: self.cause_of_death(rank) or ENDED for rank in self._ended()}
            if todo:
                self.generation += 1
        self._free(list(range(len(self.actors))))
        return replaced

    def hand_over(
        self,
        ranks: Sequence[int],
        why: str,
        deadline: float,
        *,
        fewer: bool,
        is_over: Callable[[], bool] = lambda: False,
    ) -> bool:
        """End the workers of these ranks, which will be gone soon anyway, if others can take over at once.
        The run learns of it as of any loss. One goes after the other, as each may hold what another alone
        knows, with two steps in between. From any thread.

        Args:
            ranks: whose.
            why: they must go.
            deadline: by when all must have gone, on the clock of `time.monotonic`.
            fewer: the others go on with fewer; else somebody must be up for each, on a node that stays.
            is_over: whether the run has ended, and nobody has to be waited for.

        Returns:
            Whether they were ended: False where a callable is not where it can go on, or nobody is up.
        """
        import ray

        now = time.monotonic()
        heard_by = now + min(_HEARD_S, (deadline - now) * _HEARD)
        while not self._least_progress():
            if self._ending.wait(_ENDING_S) or is_over():
                return False
            if time.monotonic() > heard_by:
                _log.info("%s: nobody takes over, as the run is not where it could go on after a loss", why)
                return False
        up = len(self._recruits.up_to_stay())
        if not fewer and up < len(ranks):
            _log.info("%s: nobody takes over, as %d workers are up for %d places", why, up, len(ranks))
            return False
        with self._lock:
            for rank in ranks:
                self._verdicts[self._numbers[rank]] = f"it had to go and has handed over ({why})"
        for rank in ranks:
            step = self._least_progress()
            ray.kill(self.actors[rank], no_restart=True)
            while rank != ranks[-1] and self._least_progress() < step + 2 and time.monotonic() < deadline:
                if self._ending.wait(_ENDING_S) or is_over():
                    return True
        return True

    def _least_progress(self) -> int:
        """Return how far all callables have come; 0 where one is not where it could go on after a loss."""
        assert self._heartbeat is not None
        progress = self._heartbeat.progress()
        return min((progress.get(self._numbers[rank], 0) for rank in self.present), default=0)

    def end(self) -> None:
        """End all workers with their children and give their places back."""
        import ray

        self._ending.set()
        members, self.actors = self.actors, []
        everybody, self._recruits.everybody = self._recruits.everybody, []
        try:
            if everybody and ray.is_initialized():
                staff.end(
                    members, [actor for actor, _ in everybody], [life for _, life in everybody], self.workers
                )
        finally:
            for reservation in (self._reservation, self._spare_reservation):
                if reservation is not None:
                    reservation.remove()
            if self._store is not None:
                self._store.close()
            if self._heartbeat is not None:
                self._heartbeat.close()

    # ---------------------------------------------------------------- bringing workers up

    def _call_spares(self, deadline: float, make_room: Callable[[], None] | None) -> None:
        """Start the spares, in places of their own; returns when there is room, before they are up."""
        if not self.spec.spares:
            return
        reservation = self._spare_reservation = reserve(self.spec.for_spares(), deadline, make_room)
        for bundle in reservation.bundle_of_worker:
            self._recruits.call(reservation, bundle)

    def _assign(self, ranks: Any, deadline: float) -> None:
        """Tell workers who they are, and watch over them from now on."""
        assert self._store is not None and self._heartbeat is not None
        cwd = os.getcwd()
        calls, names = [], self._names()
        for rank in ranks:
            info = self.workers[rank]
            with self._lock:
                number = max(self._numbers, default=-1) + 1
                self._numbers[rank:] = [number, *self._numbers[rank + 1 :]]
            self._heartbeat.expect(number, info.node_id, info.pid)
            others = [worker.node_ip for worker in self.workers if worker.node_ip != info.node_ip]
            assignment = Assignment(
                info=info,
                store=self._store.address,
                heartbeat=self._heartbeat.address,
                member=number,
                threads=self.spec.worker_threads,
                peer=others[0] if others else info.node_ip,
                cwd=cwd,
                backend=self.spec.backend,
                collective_timeout_s=self.spec.collective_timeout_s,
            )
            calls.append(self.actors[rank].assign.remote(assignment))
        chosen = [names[rank] for rank in ranks]
        staff.collect(calls, names=chosen, doing="take its rank", deadline=deadline)
        self._inquiry.remember_nodes()

    def _names(self) -> list[str]:
        return [f"rank {worker.rank} on node {worker.node_ip}" for worker in self.workers]

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

    # ---------------------------------------------------------------- losing and replacing them

    def _ended(self) -> list[int]:
        """Return the ranks whose processes have ended."""
        import ray

        lives = [life for life in self._lives if life is not None]
        ended = set(ray.wait(lives, num_returns=len(lives), timeout=0)[0])
        return [rank for rank, life in enumerate(self._lives) if life in ended]

    def _bury(self, number: int, why: str) -> None:
        """Take a worker for dead: kill it, so that whoever waits for it is told. Called by the server."""
        import ray

        with self._lock:
            self._verdicts[number] = why
            rank = self._numbers.index(number) if number in self._numbers else None
        if why == ENDED and rank is not None and rank < len(self._lives) and ray.is_initialized():
            with contextlib.suppress(Exception):  # Ray soon knows better why, but for a lost node
                if (
                    self._lives[rank] is not None
                    and ray.wait([self._lives[rank]], timeout=_KNOWS_BETTER_S)[0]
                ):
                    return
        if rank is not None and rank < len(self.actors) and ray.is_initialized():
            with contextlib.suppress(Exception):
                ray.kill(self.actors[rank], no_restart=True)

    def _fence(self, rank: int) -> None:
        """Make sure that a lost worker does nothing more in the group's name."""
        import ray

        assert self._heartbeat is not None
        self._heartbeat.forget(self._numbers[rank])
        ray.kill(self.actors[rank], no_restart=True)
        self._make_up_for(rank)

    def _make_up_for(self, rank: int) -> None:
        """Ask for a worker in the place of one that is gone."""
        self._recruits.call(*self._places[rank])

    def _free(self, ranks: list[int]) -> None:
        """Free these ranks from the generation that they are in, for the present one. Does not wait."""
        for rank in ranks:
            lane = self.actors[rank].want.options(concurrency_group="control")
            lane.remote(self.generation, tuple(self.present))

    def _fill(self, rank: int, deadline: float) -> None:
        """Give a rank to the first recruit that is up."""
        while True:
            recruit, place = self._recruits.take_first(rank, deadline)
            try:
                self._install(rank, recruit, place, deadline)
                return
            except StartError:
                self._recruits.call_again(recruit)

    def _install(self, rank: int, recruit: Recruit, place: Place, deadline: float) -> None:
        """Give a rank to a recruit that is up.

        Raises:
            StartError: It was lost, or did not take it by the deadline.
        """
        info = replace_worker(self.workers, rank, place)
        self.workers = (*self.workers[:rank], info, *self.workers[rank + 1 :])
        self.actors[rank], self._lives[rank] = recruit.actor, recruit.life
        self._places[rank] = (recruit.reservation, recruit.bundle)
        noise.mute_deaths([info.pid])
        self._assign([rank], deadline)
        self.deliver([rank])
