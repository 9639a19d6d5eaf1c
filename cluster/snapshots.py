"""What a rank alone knows, kept in another rank's memory as well, so that it outlives its process.

Every rank has a holder, on another node where there is one. At each commit a rank sends the holder what it
alone knows (bytes; this file does not look into them) and waits until those that it holds for others have
arrived, which they usually have. The last two of each rank are kept, also into later generations of the
process group: a survivor may be one commit ahead of another. Sending never waits for the holder to read. A
peer that is lost makes `hand_over` raise `PeerLost`; so does `hang_up`, called from any other thread.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import PeerLost
from cluster.network import listen

_HELLO = struct.Struct("<32sQQ")  # the group's token, generation, rank
_FRAME = struct.Struct("<QQ")  # number, length of what follows
_KEPT = 2
_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Where a rank takes copies.

    Attributes:
        node: Its node's id.
    """

    host: str
    port: int
    node: str


def holders(nodes: Sequence[str]) -> list[int]:
    """Return which rank holds the copies of each rank, given each rank's node: one of another node if there
    is any, and no rank holds many more than others.

    >>> holders(["a", "a", "b", "b"])
    [2, 3, 0, 1]
    >>> holders(["a", "a"])
    [1, 0]
    """
    size = len(nodes)
    chosen = []
    for rank, node in enumerate(nodes):
        others = [(rank + nodes.count(node) + step) % size for step in range(size)]
        elsewhere = (other for other in others if nodes[other] != node)
        chosen.append(next(elsewhere, (rank + 1) % size))
    return chosen


class Snapshots:
    """One rank's end: its line to the holder, and what it holds for others.

    Args:
        host: An address of this machine that the other ranks reach; it listens there alone.
        node: This node's id.
        token: 32 secret bytes that all ranks of the group know.

    Attributes:
        address: Where it listens.
    """

    def __init__(self, host: str, node: str, token: bytes) -> None:
        self._token = token
        self._listener = listen(host)
        self.address = Holder(host=host, port=self._listener.getsockname()[1], node=node)
        self._changed = threading.Condition()
        self._held: dict[int, dict[int, bytes]] = {}
        self._wards: frozenset[int] = frozenset()
        self._lost: dict[int, int] = {}  # rank: the generation in which its line to here has ended
        self._generation = -1
        self._joined = False
        self._line: socket.socket | None = None
        self._links: dict[socket.socket, int] = {}  # lines to here, with their generation
        threading.Thread(target=self._accept, name="cluster-snapshots", daemon=True).start()

    def connect(
        self, generation: int, rank: int, members: Sequence[Holder], names: Sequence[int] | None = None
    ) -> None:
        """Begin a generation: call this rank's holder, and hold copies for those whose holder this is.

        Args:
            generation: Of the process group.
            rank: This rank.
            members: Where each rank takes copies.
            names: Under which number copies of each are kept; None for its rank.

        Raises:
            PeerLost: The holder cannot be reached.
        """
        self.hang_up()
        holder_of = holders([member.node for member in members])
        holder = members[holder_of[rank]]
        numbers = range(len(members)) if names is None else names
        with self._changed:
            self._generation, self._joined = generation, True
            self._wards = frozenset(
                numbers[other] for other, chosen in enumerate(holder_of) if chosen == rank and other != rank
            )
        if holder_of[rank] == rank:
            return
        try:
            line = socket.create_connection((holder.host, holder.port), timeout=_CONNECT_S)
            line.settimeout(None)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.sendall(_HELLO.pack(self._token, generation, numbers[rank]))
        except OSError as error:
            raise PeerLost(f"Rank {holder_of[rank]}, which holds copies for rank {rank}: {error}.") from error
        with self._changed:
            self._line = line

    def hand_over(self, number: int, data: bytes) -> None:
        """Give the holder this rank's copy of that number, and wait for those of the same number that this
        rank holds. Numbers grow.

        Raises:
            PeerLost: A peer is gone, or somebody has hung up.
        """
        with self._changed:
            line = self._line
        if line is not None:
            try:
                line.sendall(_FRAME.pack(number, len(data)) + data)
            except OSError as error:
                raise PeerLost(f"The rank that holds copies for this one is lost: {error}.") from error
        with self._changed:
            waiting = self._wards
            while waiting:
                waiting = frozenset(rank for rank in waiting if number not in self._held.get(rank, ()))
                gone = any(self._lost.get(rank, -1) == self._generation for rank in waiting)
                if gone or (waiting and not self._joined):
                    raise PeerLost(f"Rank {min(waiting, default='?')} is lost: its copy did not come.")
                if waiting:
                    self._changed.wait()

    def held(self) -> dict[int, dict[int, bytes]]:
        """Return the copies that this rank holds: by rank, then by number."""
        with self._changed:
            return {rank: dict(copies) for rank, copies in self._held.items()}

    def forget(self) -> None:
        """Drop all copies, and count numbers anew: another run begins."""
        with self._changed:
            self._held.clear()

    def hang_up(self) -> None:
        """Leave the present generation: those who wait for a peer get `PeerLost`. From any thread."""
        with self._changed:
            self._joined = False
            links = [link for link, generation in self._links.items() if generation <= self._generation]
            line, self._line = self._line, None
            self._changed.notify_all()
        for link in (*links, *([line] if line is not None else [])):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        if line is not None:
            line.close()

    def close(self) -> None:
        """Hang up and listen no longer."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    # ---------------------------------------------------------------- what others send

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._receive, args=(link,), name="cluster-snapshots-ward", daemon=True
            ).start()

    def _receive(self, link: socket.socket) -> None:
        """Take one rank's copies until it hangs up."""
        with link:
            link.settimeout(_CONNECT_S)
            hello = _read(link, _HELLO.size)
            if hello is None:
                return
            token, generation, rank = _HELLO.unpack(hello)
            if not hmac.compare_digest(token, self._token):
                return
            link.settimeout(None)
            with self._changed:
                self._links[link] = generation
            while (header := _read(link, _FRAME.size)) is not None:
                number, length = _FRAME.unpack(header)
                data = _read(link, length)
                if data is None:
                    break
                self._keep(rank, number, data)
            with self._changed:
                del self._links[link]
                self._lost[rank] = max(generation, self._lost.get(rank, -1))
                self._changed.notify_all()

    def _keep(self, rank: int, number: int, data: bytes) -> None:
        with self._changed:
            copies = self._held.setdefault(rank, {})
            copies.pop(number, None)  # sent again after a retry: the newest is last
            copies[number] = data
            while len(copies) > _KEPT:
                del copies[next(iter(copies))]
            self._changed.notify_all()


def _read(link: socket.socket, size: int) -> bytes | None:
    """Return the next `size` bytes; None where the line has ended."""
    data = bytearray()
    while len(data) < size:
        try:
            more = link.recv(min(size - len(data), 1 << 20))
        except OSError:
            return None
        if not more:
            return None
        data += more
    return bytes(data)
