"""What a callable gets to know and to use on a worker: who it is among the ranks, and how to talk to the
driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import ClusterError
from cluster.failure import is_broken_link
from cluster.heartbeat import Beacon
from cluster.mailbox import Mailbox
from cluster.membership import Membership
from cluster.ranks import WorkerInfo
from cluster.serialization import dump_fast, load


class WorkerContext:
    """The first argument of every callable that runs on a worker. It is valid until the callable returns.

    Attributes:
        rank, world_size: this process among all, 0 to world_size - 1.
        local_rank, local_world_size: this process among those on its node.
        node_rank, num_nodes: this node among the group's nodes.
        node_id, node_ip: the node, as Ray knows it.
        recovers: a lost peer will be replaced; after a collective has failed, call `rejoin`.
        joining: this worker replaces one that was lost in this run: the callable must begin with `rejoin`.
        device: "cpu", or "cuda:i", from the GPUs that Ray assigned to this worker.
        signals: what the driver sent by `WorkerGroup.signal` in this run; filled from another thread, read
            without locks.
        where: set it to a function that says what is being done ("epoch 3, step 41"). It is asked only when
            the callable fails, for the error report.
        hidden: top-level packages whose frames are left out of the error report.
        heeds_notices: set it to True where the run was given `on_notice`: a SIGTERM to this process is then
            told to the driver, instead of ending it.
        position: set it to a function that says how far this worker has come: what `WorkerGroup.announce`
            returns. It is called from another thread.
    """

    __slots__ = (
        "_beacon",
        "_mailbox",
        "_membership",
        "device",
        "heeds_notices",
        "hidden",
        "joining",
        "local_rank",
        "local_world_size",
        "node_id",
        "node_ip",
        "node_rank",
        "num_nodes",
        "position",
        "rank",
        "recovers",
        "signals",
        "where",
        "world_size",
    )

    def __init__(
        self,
        info: WorkerInfo,
        signals: dict[str, object],
        mailbox: Mailbox,
        membership: Membership,
        beacon: Beacon | None = None,
        *,
        recovers: bool = False,
    ) -> None:
        self.rank = info.rank
        self.world_size = info.world_size
        self.local_rank = info.local_rank
        self.local_world_size = info.local_world_size
        self.node_rank = info.node_rank
        self.num_nodes = info.num_nodes
        self.node_id = info.node_id
        self.node_ip = info.node_ip
        self.device = info.device
        self.recovers = recovers
        self.joining = membership.generation < 0
        self.signals = signals
        self.where: Callable[[], str] | None = None
        self.hidden: tuple[str, ...] = ()
        self.heeds_notices = False
        self.position: Callable[[], Any] | None = None
        self._mailbox = mailbox
        self._membership = membership
        self._beacon = beacon

    @property
    def generation(self) -> int:
        """How many times the group's processes had formed a process group before this one."""
        return self._membership.generation

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks that form the present process group, in its order."""
        return self._membership.members

    def is_broken(self, error: BaseException) -> bool:
        """Whether an exception comes of the loss of a peer: it says so, or it was raised by an operation of
        torch after the driver has called for another generation.
        """
        return is_broken_link(error) or (isinstance(error, RuntimeError) and self._membership.is_broken)

    def rejoin(self) -> int:
        """Leave the broken process group, wait for the lost ranks' replacements, and form a new group.

        Call it outside of the `except` block that caught the failure: the exception's traceback keeps the old
        group alive, and with it the peers' connections. Groups made from the old one are gone.

        Returns:
            The number of the new generation.

        Raises:
            ClusterError: `recovers` is False.
        """
        if not self.recovers:
            raise ClusterError("rejoin() in a run without recovery. Pass recovery= to WorkerGroup.run().")
        arrives = self.joining and self._membership.generation < 0
        self._mailbox.put("arrived" if arrives else "broken", b"", urgent=True)
        generation = self._membership.rejoin()
        self._mailbox.put("joined", b"", urgent=True)
        return generation

    def move(self, generation: int, members: Sequence[int]) -> int:
        """Leave a process group that is whole for the one that the driver has invited to: all members call it
        behind the same step.

        Args:
            generation: Of the new group.
            members: Its ranks, in its order.

        Returns:
            The number of the generation that was formed; a later one where a member was lost meanwhile.
        """
        generation = self._membership.move(generation, members)
        self._mailbox.put("joined", b"", urgent=True)
        return generation

    def hand_over(self, number: int, data: bytes) -> None:
        """Give what this rank alone knows to the rank that holds copies of it, and wait for the copies that
        this rank holds of others: so that no rank goes on from a step whose outcome could be lost.

        Args:
            number: Of the step; grows by one from one call to the next, and is the same on all ranks.
            data: What a replacement of this rank needs; the last two are kept.

        Raises:
            PeerLost: A peer is gone; call `rejoin`.
        """
        self._membership.snapshots.hand_over(number, data)

    def held(self) -> dict[int, dict[int, bytes]]:
        """Return the copies that this rank holds of others: by rank, then by number."""
        return self._membership.snapshots.held()

    def note_progress(self, count: int) -> None:
        """Tell the driver, with the next sign of life, how far the callable has come: a growing count."""
        if self._beacon is not None:
            self._beacon.progress = count

    def show_progress(self, read: Callable[[], object]) -> None:
        """Let the driver see whether the callable gets on, so that a standstill is noticed.

        Args:
            read: Returns what changes while it does. Called a few times a second, from another thread.
        """
        if self._beacon is not None:
            self._beacon.read = read

    def emit(self, event: object) -> None:
        """Send an event to the driver's `on_event`, as it is now. Never blocks.

        Raises:
            SerializationError: the event cannot be pickled.
        """
        self._mailbox.put("event", dump_fast(event, f"an event of type {type(event).__qualname__}"))

    def ask(self, question: object) -> Any:
        """Send a question to the driver and wait for what its `on_ask` returns.

        Events emitted before it have reached `on_event` when it is answered.

        Raises:
            SerializationError: the question cannot be pickled.
            ClusterError: the callable has returned already.
        """
        answer = self._mailbox.ask(dump_fast(question, f"a question of type {type(question).__qualname__}"))
        if answer is None:
            raise ClusterError(
                f"ask({type(question).__qualname__}) came after the callable had returned, "
                "so nobody answers. "
                "Ask before it returns, and end the threads it starts."
            )
        return load(answer)
