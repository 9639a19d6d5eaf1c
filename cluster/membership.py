"""A worker's membership of the process group, from one generation of it to the next.

The callable's thread joins and leaves; the driver's calls, in other threads, say that a new generation is
wanted, which frees the callable from a collective that waits for a lost peer. A process group is formed only
once all of its members have come, so a member that is lost meanwhile is waited for by nobody: the driver
wants yet another generation, and those who wait go on to that. Each generation has a number never used
before, and members in an order that the driver gives. A generation that cannot be formed raises `StartError`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from cluster import process_group
from cluster.errors import RunLost, StartError
from cluster.process_group import Links
from cluster.snapshots import Holder, Snapshots

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

_LOOK_S = 0.002


class Membership:
    """One worker's membership. `want` may be called from any thread, the rest from the callable's.

    Args:
        store: The connection to the driver's store.
        rank: This worker's rank.
        world_size: Members, where the driver names none.
        backend: "gloo" or "nccl".
        timeout_s: Seconds after which a collective, or the forming of a group, fails.
        device: This worker's device.
        snapshots: This worker's end of the copies that ranks hold for each other.

    Attributes:
        generation: The number of the process group that it is, or was last, a member of; -1 before the first.
        members: The ranks that form it, in its order.
    """

    def __init__(
        self,
        store: TCPStore,
        *,
        rank: int,
        world_size: int,
        backend: str,
        timeout_s: float,
        device: str,
        snapshots: Snapshots,
    ) -> None:
        self._store = store
        self._rank = rank
        self._lists: dict[int, tuple[int, ...]] = {}
        self.members: tuple[int, ...] = tuple(range(world_size))
        self._backend = backend
        self._timeout_s = timeout_s
        self._device = device
        self.snapshots = snapshots
        self._changed = threading.Condition()
        self._wanted = -1
        self._given_up = False
        self._links: Links | None = None
        self.generation = -1

    @property
    def is_broken(self) -> bool:
        """Whether the present generation is given up."""
        return self._given_up or self._wanted > self.generation

    def want(self, generation: int, members: Sequence[int] | None = None) -> None:
        """Say that these members are to form this generation; collectives of an older one fail at once."""
        with self._changed:
            self._note(generation, members)
            self._wanted = max(self._wanted, generation)
            links = self._links if self.generation < self._wanted else None
            self._changed.notify_all()
        if links is not None:
            links.close()
            self.snapshots.hang_up()

    def give_up(self) -> None:
        """Make collectives fail at once, and `rejoin` too, until the driver has a generation formed."""
        with self._changed:
            self._given_up = True
            links = self._links
            self._changed.notify_all()
        if links is not None:
            links.close()
            self.snapshots.hang_up()

    def _note(self, generation: int, members: Sequence[int] | None) -> None:
        if members is not None:
            self._lists[generation] = tuple(members)

    def join(self, generation: int, members: Sequence[int] | None = None) -> None:
        """Leave the present generation, if any, and form this one with the other members.

        Raises:
            StartError: A newer generation was wanted meanwhile, or members did not come in time.
        """
        with self._changed:
            self._note(generation, members)
            self._wanted = max(self._wanted, generation)
            self._given_up = False
        self._form(generation)

    def move(self, generation: int, members: Sequence[int]) -> int:
        """Leave a generation that is whole for a later one, or for what the driver wants by then."""
        with self._changed:
            self._note(generation, members)
            self._wanted = max(self._wanted, generation)
        return self.rejoin()

    def _form(self, generation: int) -> None:
        self.leave()
        ranks = self._lists.get(generation, self.members)
        members = self._all_come(generation, ranks)
        if members is None:
            raise StartError(
                f"Generation {generation} of the process group was given up: not all members came. "
                "The next one replaces it."
            )
        links = process_group.join(
            self._store,
            generation=generation,
            rank=ranks.index(self._rank),
            world_size=len(ranks),
            backend=self._backend,
            timeout_s=self._timeout_s,
            device=self._device,
        )
        self.snapshots.connect(generation, ranks.index(self._rank), members, ranks)
        with self._changed:
            self._links, self.generation, self.members = links, generation, ranks
            self._lists = {number: item for number, item in self._lists.items() if number > generation}
            late = self._wanted > generation
        if late:
            links.close()
            self.snapshots.hang_up()

    def rejoin(self) -> int:
        """Leave a broken generation, form the next that the driver wants, and return its number.

        Raises:
            RunLost: The run was given up.
        """
        self.leave()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._given_up or self._wanted > self.generation)
                if self._given_up:
                    raise RunLost("Another rank cannot go on, so the run was given up.")
                wanted = self._wanted
            try:
                self._form(wanted)
                return wanted
            except (StartError, RuntimeError):  # a member was lost while it was formed
                with self._changed:
                    self.generation = max(self.generation, wanted)

    def leave(self) -> None:
        """Leave the present generation, if any."""
        with self._changed:
            self._links = None
        self.snapshots.hang_up()
        process_group.leave()

    def _all_come(self, generation: int, ranks: Sequence[int]) -> list[Holder] | None:
        """Wait for all members of a generation, and return where each takes copies; None when a newer one is
        wanted first, or time is up.
        """
        names = [f"come/{generation}/{rank}" for rank in ranks]
        self._store.set(f"come/{generation}/{self._rank}", json.dumps(asdict(self.snapshots.address)))
        deadline = time.monotonic() + self._timeout_s
        while not self._store.check(names):
            if self._wanted > generation or self._given_up or time.monotonic() > deadline:
                return None
            time.sleep(_LOOK_S)
        return [Holder(**json.loads(value)) for value in self._store.multi_get(names)]
