"""What a rank alone knows, kept in another rank's memory as well, so that it outlives its process.

Every rank has a holder, on another node where there is one. At each commit a rank sends the holder what it
alone knows (bytes; this file does not look into them) and waits until those that it holds for others have
arrived, which they usually have. The last two of each rank are kept, also into later generations of the
process group: a survivor may be one commit ahead of another. It all happens in the thread that trains, which
sends and reads as the lines let it: no other thread has to be woken in a step. A peer that is lost makes
`hand_over` raise `PeerLost`; so does `hang_up`, called from any other thread.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.errors import PeerLost
from cluster.network import listen

_HELLO = struct.Struct("<32sQQ")  # the group's token, generation, rank
_FRAME = struct.Struct("<QQ")  # number, length of what follows
_KEPT = 2
_NO_MORE = 1 << 63  # a generation behind all
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


@dataclass(slots=True)
class _Ward:
    """The line of a rank whose copies this one holds.

    Attributes:
        received: What has come and is no whole copy yet.
        has_ended: No more will come.
    """

    link: socket.socket
    generation: int
    rank: int
    received: bytearray = field(default_factory=bytearray)
    has_ended: bool = False


class Snapshots:
    """One rank's end: its line to the holder, and what it holds for others.

    One thread uses it; `hang_up` may be called from any.

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
        self._lock = threading.Lock()
        self._held: dict[int, dict[int, bytes]] = {}
        self._ward_ranks: frozenset[int] = frozenset()
        self._wards: list[_Ward] = []
        self._generation = -1
        self._joined = False
        self._line: socket.socket | None = None
        self._spent: list[socket.socket] = []  # hung up, to be closed by the thread that uses them
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
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
        self._let_go(generation)
        holder_of = holders([member.node for member in members])
        holder = members[holder_of[rank]]
        numbers = range(len(members)) if names is None else names
        with self._lock:
            self._generation, self._joined = generation, True
        self._ward_ranks = frozenset(
            numbers[other] for other, chosen in enumerate(holder_of) if chosen == rank and other != rank
        )
        if holder_of[rank] == rank:
            return
        try:
            line = socket.create_connection((holder.host, holder.port), timeout=_CONNECT_S)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.sendall(_HELLO.pack(self._token, generation, numbers[rank]))
        except OSError as error:
            raise PeerLost(f"Rank {holder_of[rank]}, which holds copies for rank {rank}: {error}.") from error
        line.setblocking(False)
        with self._lock:
            self._line = line

    def hand_over(self, number: int, data: bytes) -> None:
        """Give the holder this rank's copy of that number, and wait for those of the same number that this
        rank holds. Numbers grow.

        Raises:
            PeerLost: A peer is gone, or somebody has hung up.
        """
        line, unsent = self._line, memoryview(_FRAME.pack(number, len(data)) + data)
        if line is None:
            unsent = unsent[:0]
        while True:
            if unsent and line is not None:
                unsent = _send(line, unsent)
            waiting = self._waiting(number)
            if not unsent and not waiting:
                return
            if not self._joined:
                raise PeerLost(f"Rank {min(waiting, default='?')} is lost: its copy did not come.")
            self._wait(waiting, line if unsent else None)

    def held(self) -> dict[int, dict[int, bytes]]:
        """Return the copies that this rank holds: by rank, then by number."""
        for ward in self._present():
            self._read(ward)
        return {rank: dict(copies) for rank, copies in self._held.items()}

    def forget(self) -> None:
        """Drop all copies, and count numbers anew: another run begins."""
        self._held.clear()

    def hang_up(self) -> None:
        """Leave the present generation: a wait for a peer raises `PeerLost`. From any thread."""
        with self._lock:
            self._joined = False
            links = [ward.link for ward in self._wards if ward.generation <= self._generation]
            if self._line is not None:
                links.append(self._line)
                self._spent.append(self._line)
                self._line = None
            for link in links:
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
            self._wake()

    def close(self) -> None:
        """Hang up and listen no longer. A second call does nothing."""
        if self._listener.fileno() == -1:
            return
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        self._let_go(_NO_MORE)
        with self._lock:
            os.close(self._woken)
            os.close(self._waker)
            self._waker = -1

    # ---------------------------------------------------------------- in the thread that trains

    def _present(self) -> list[_Ward]:
        """Return the lines of the present generation."""
        with self._lock:
            return [ward for ward in self._wards if ward.generation == self._generation]

    def _waiting(self, number: int) -> dict[int, _Ward | None]:
        """Return the ranks whose copy of that number has not come, with their lines, which are read first.

        Raises:
            PeerLost: One will not come.
        """
        missing = [rank for rank in self._ward_ranks if number not in self._held.get(rank, ())]
        if not missing:
            return {}
        lines = {ward.rank: ward for ward in self._present()}
        waiting: dict[int, _Ward | None] = {}
        for rank in missing:
            ward = lines.get(rank)
            if ward is not None:
                self._read(ward)
                if number in self._held.get(rank, ()):
                    continue
                if ward.has_ended:
                    raise PeerLost(f"Rank {rank} is lost: its copy did not come.")
            waiting[rank] = ward
        return waiting

    def _wait(self, waiting: dict[int, _Ward | None], full: socket.socket | None) -> None:
        """Wait until a line has something, the full one takes more, or something else has changed."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        for ward in waiting.values():
            if ward is not None:
                poll.register(ward.link, select.POLLIN)
        if full is not None:
            poll.register(full, select.POLLOUT)
        if any(fd == self._woken for fd, _ in poll.poll()):
            os.read(self._woken, 4096)

    def _read(self, ward: _Ward) -> None:
        """Take what has come on a line."""
        while not ward.has_ended:
            try:
                more = ward.link.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                more = b""
            ward.has_ended = not more
            ward.received += more
            self._keep(ward)

    def _keep(self, ward: _Ward) -> None:
        """Keep the whole copies among what was received."""
        received = ward.received
        while len(received) >= _FRAME.size:
            number, length = _FRAME.unpack_from(received)
            end = _FRAME.size + length
            if len(received) < end:
                return
            copies = self._held.setdefault(ward.rank, {})
            copies.pop(number, None)  # sent again after a retry: the newest is last
            copies[number] = bytes(received[_FRAME.size : end])
            while len(copies) > _KEPT:
                del copies[next(iter(copies))]
            del received[:end]

    def _let_go(self, generation: int) -> None:
        """Take what is left on the lines of generations before this one, and close them."""
        with self._lock:
            old = [ward for ward in self._wards if ward.generation < generation]
            self._wards = [ward for ward in self._wards if ward.generation >= generation]
            spent, self._spent = self._spent, []
        for ward in old:
            self._read(ward)
            ward.link.close()
        for line in spent:
            line.close()

    # ---------------------------------------------------------------- in other threads

    def _wake(self) -> None:
        """End a wait; called with the lock."""
        if self._waker != -1:
            with contextlib.suppress(BlockingIOError):
                os.write(self._waker, b"!")

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._greet, args=(link,), name="cluster-snapshots-ward", daemon=True
            ).start()

    def _greet(self, link: socket.socket) -> None:
        """Take a caller for a ward when it knows the token."""
        link.settimeout(_CONNECT_S)
        hello = _read_hello(link)
        token, generation, rank = _HELLO.unpack(hello) if hello else (b"", 0, 0)
        if not hmac.compare_digest(token, self._token):
            link.close()
            return
        link.setblocking(False)
        with self._lock:
            if self._waker == -1:  # closed meanwhile
                link.close()
                return
            self._wards.append(_Ward(link, generation, rank))
            self._wake()


def _send(line: socket.socket, unsent: memoryview) -> memoryview:
    """Send what the line takes now; return the rest."""
    try:
        return unsent[line.send(unsent) :]
    except BlockingIOError:
        return unsent
    except OSError as error:
        raise PeerLost(f"The rank that holds copies for this one is lost: {error}.") from error


def _read_hello(link: socket.socket) -> bytes | None:
    """Return a caller's first words; None where it has none."""
    data = b""
    while len(data) < _HELLO.size:
        try:
            more = link.recv(_HELLO.size - len(data))
        except OSError:
            return None
        if not more:
            return None
        data += more
    return data
