"""Workers that have been called to a group and have no rank yet: on their way, or standing by.

A spare is one that was called before it was needed; one that stands by has everything imported and is
connected to the store, so that nothing is left to do when it takes a lost rank's place.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from cluster import actors as staff
from cluster import preflight
from cluster.errors import StartError
from cluster.placement import Reservation
from cluster.preemption import draining_nodes
from cluster.process_group import StoreAddress
from cluster.ranks import Place
from cluster.spec import GroupSpec


@dataclass(slots=True, kw_only=True)
class Recruit:
    """A worker that is coming up, or stands by.

    Attributes:
        actor: Its actor.
        life: A call that ends with its process.
        ready: A call whose answer, its `Place`, says that it is up.
        reservation: Where its place was reserved.
        bundle: Which of the places there.
    """

    actor: Any
    life: Any
    ready: Any
    reservation: Reservation
    bundle: int


class Recruits:
    """Those of one group.

    Attributes:
        coming: Who has no rank yet.
        everybody: Every actor that was ever called, with its life.
        store: Where the group's store listens; None until it does.
    """

    def __init__(self, spec: GroupSpec) -> None:
        self.coming: list[Recruit] = []
        self.everybody: list[tuple[Any, Any]] = []
        self.store: StoreAddress | None = None
        self._spec = spec

    def call(self, reservation: Reservation, bundle: int) -> Recruit:
        """Start a worker in a reserved place; returns before it is up."""
        spec = self._spec
        actor = staff.spawn(spec, reservation, bundle)
        life = actor.live.options(concurrency_group="life").remote()
        self.everybody.append((actor, life))
        store = None if self.store is None else (self.store, spec.collective_timeout_s)
        ready = actor.prepare.remote(dict(spec.env), spec.preload, store)
        recruit = Recruit(actor=actor, life=life, ready=ready, reservation=reservation, bundle=bundle)
        self.coming.append(recruit)
        return recruit

    def call_again(self, recruit: Recruit) -> None:
        """Start a worker where one was that is lost, or could not take a rank."""
        import ray

        ray.kill(recruit.actor, no_restart=True)  # it may be there still, in the other's place
        self.call(recruit.reservation, recruit.bundle)

    def up_to_stay(self) -> list[Recruit]:
        """Return those that are up on nodes that Ray does not drain."""
        import ray

        calls = {recruit.ready: recruit for recruit in list(self.coming)}
        done = ray.wait(list(calls), num_returns=len(calls), timeout=0)[0] if calls else []
        going, found = draining_nodes(), []
        for call in done:
            with contextlib.suppress(ray.exceptions.RayError):  # it is lost
                if ray.get(call).node_id not in going:
                    found.append(calls[call])
        return found

    def take_first(self, rank: int, deadline: float) -> tuple[Recruit, Place]:
        """Wait for the first that is up, for the place of a rank; say where it runs.

        Raises:
            StartError: none was up by the deadline, on the clock of `time.monotonic`.
        """
        import ray

        while True:
            calls = {recruit.ready: recruit for recruit in self.coming}
            left_s = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(calls), num_returns=1, timeout=left_s)
            if not done:
                raise StartError(
                    f"No replacement for rank {rank} came within the time given: there is neither a spare "
                    "nor room for a new worker. Add a node, ask for spares, or wait longer."
                )
            recruit = calls[done[0]]
            self.coming.remove(recruit)
            try:
                place: Place = ray.get(done[0])
            except ray.exceptions.RayError:  # it was lost before it was needed
                self.call_again(recruit)
                continue
            if not preflight.warn_of(place.node_ip, place.report):
                return recruit, place
