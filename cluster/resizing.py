"""Workers that may become fewer and more during a run: a loss is not waited for, and who comes is taken in.

Each worker has a number from the start to its end, which the one that takes its place gets again. Those that
are there form the process group, in the order in which they have come, so that the first of them stays the
first as long as it lives. A lost worker's place is asked for again at once; whoever is up takes it when the
run has a moment for it. Fewer than the least number are filled up first, which is waited for. Workers beyond
those of the start have places of their own, which are given back when others need them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from cluster import preflight
from cluster.errors import StartError
from cluster.fitting import plan_bundles
from cluster.heartbeat import ENDED
from cluster.placement import Reservation
from cluster.ranks import Place
from cluster.roster import Roster
from cluster.spec import GroupSpec

_STEPS_BETWEEN = 2  # so that all have handed over what they alone know


class ResizableRoster(Roster):
    """The workers of one group, of which some may be missing.

    Attributes:
        resized: Workers have come or gone, so the group is not what its spec says.
    """

    def __init__(self, spec: GroupSpec) -> None:
        super().__init__(spec)
        self.resized = False
        self._given: int | None = None  # to somebody who makes itself ready
        self._more: list[Reservation] = []
        self._returned: list[Reservation] = []  # whose workers have been told to go
        self._steps: int | None = None  # made when the next was to go

    def shrink(self, lost: dict[int, str], wait_s: float, least: int) -> tuple[dict[int, str], list[int]]:
        """Go on without lost workers, and those that are lost meanwhile; free the survivors for the next
        generation.

        Args:
            lost: Why, by number; may be empty, then the survivors form a new generation as they are.
            wait_s: Seconds to wait for others where fewer than `least` are left.
            least: So many there must be.

        Returns:
            Why, by number, for all that are gone; and the numbers of those that had to come, but for one who
            was making itself ready.

        Raises:
            StartError: None came in time.
        """
        deadline = time.monotonic() + wait_s
        gone: dict[int, str] = {}
        came: list[int] = []
        todo = dict(lost)
        self.generation += 1
        while True:
            for number in todo:
                self._fence(number)
                self.present.remove(number)
                self.resized = True
            gone |= todo
            came = [number for number in came if number not in todo]
            while len(self.present) < least:
                if self._given is not None:  # who makes itself ready has begun its run already
                    self.present.append(self._given)
                    self._given = None
                    continue
                number = self._vacancy()
                self._fill(number, deadline)
                self.present.append(number)
                came.append(number)
            ended = [number for number in self._ended() if number in self.present]
            todo = {number: self.cause_of_death(number) or ENDED for number in ended}
            if not todo:
                break
            self.generation += 1
        self._free(self.present)
        return gone, came

    def call_more(self, most: int) -> None:
        """Ask for workers beyond those of the start, up to `most`; does not wait for room."""
        import ray

        plan = plan_bundles(replace(self.spec, num_workers=1, num_nodes=None, spares=0, label_selectors=()))
        while len(self.present) + len(self._recruits.coming) < most:
            group = ray.util.placement_group([dict(plan.bundle)])
            reservation = Reservation(placement_group=group, bundle_of_worker=(0,), ours=True)
            self._more.append(reservation)
            self.resized = True
            self._recruits.call(reservation, 0)

    @property
    def called(self) -> int:
        """How many workers there are, or have been asked for."""
        return len(self.present) + len(self._recruits.coming)

    def give_back(self) -> list[int]:
        """Give the places of `call_more` back: at once where nobody is in them yet. Of those who work there,
        one is ended if the others can go on at once, who learn of it as of any loss; ask again for the next.

        Only one at a time: what a worker alone knows is held by another, and both must not go together. So
        the others have made steps before the next goes.

        Returns:
            The numbers of those that are ended.
        """
        import ray

        for recruit in [item for item in self._recruits.coming if item.reservation in self._more]:
            self._recruits.coming.remove(recruit)
            self._more.remove(recruit.reservation)
            ray.kill(recruit.actor, no_restart=True)
            recruit.reservation.remove()
        going = [number for number in self.present if self._places[number][0] in self._more]
        if not going or self._returned or not self._have_gone_on():
            return []
        number = going[-1]
        if not self.hand_over([number], "others need its place", time.monotonic(), fewer=True):
            return []
        self._steps = None
        self._more.remove(self._places[number][0])
        self._returned.append(self._places[number][0])
        return [number]

    def _have_gone_on(self) -> bool:
        """Whether all have made steps since this was asked first behind the last return."""
        assert self._heartbeat is not None
        progress = self._heartbeat.progress()
        steps = [progress.get(self._numbers[number], 0) for number in self.present]
        if self._steps is None:
            self._steps = max(steps)
        return min(steps) >= self._steps + _STEPS_BETWEEN

    def recruits(self, most: int) -> list[Any]:
        """Return what tells when somebody is up that could come; nothing where `most` are there."""
        return [] if len(self.present) >= most else [recruit.ready for recruit in self._recruits.coming]

    def admit(self, ready: Any) -> int | None:
        """Give a number to somebody who is up, so that it can make itself ready; return the number, or None
        where it was lost before.
        """
        import ray

        recruit = next(item for item in self._recruits.coming if item.ready == ready)
        self._recruits.coming.remove(recruit)
        try:
            place: Place = ray.get(ready)
            if preflight.warn_of(place.node_ip, place.report):
                return None
            number = self._vacancy()
            self._install(number, recruit, place, time.monotonic() + self.spec.start_timeout_s)
        except (ray.exceptions.RayError, StartError):
            self._recruits.call_again(recruit)
            return None
        self.resized = True
        self._given = number
        return number

    def include(self, number: int) -> None:
        """Take in who is ready: it waits for the next generation, to which the caller invites the others."""
        self._given = None
        self.present.append(number)
        self.generation += 1
        self._free([number])

    def dismiss(self, number: int) -> None:
        """End who was given a number and is not taken in; its place is asked for again."""
        self._given = None
        if number in self.present:
            self.present.remove(number)
        self._fence(number)

    def end(self) -> None:
        """End all workers with their children and give their places back."""
        super().end()
        for reservation in (*self._more, *self._returned):
            reservation.remove()

    def _make_up_for(self, rank: int) -> None:
        reservation, _ = self._places[rank]
        if reservation not in self._returned:
            super()._make_up_for(rank)
            return
        self._returned.remove(reservation)
        reservation.remove()

    def _vacancy(self) -> int:
        """Return the least number that nobody has, with room for it."""
        taken = {*self.present, self._given}
        number = next(number for number in range(len(self.workers) + 1) if number not in taken)
        if number == len(self.workers):
            self.workers = (*self.workers, replace(self.workers[-1], rank=number))
            self.actors.append(None)
            self._lives.append(None)
            self._places.append(self._places[-1])
        return number
