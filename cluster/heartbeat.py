"""Signs of life: each worker says a few times a second that it is there, on a connection of its own to the
driver.

The end of a process closes its connection, so the driver learns of it in milliseconds. Silence alone proves
nothing: a worker may hold the interpreter's lock for minutes while it compiles. So a silent worker is a
suspect, and the verdict is the state of its process, read from its own node: by another worker there, else
by whoever the driver sends. A process that is gone or stopped, and one on a node that cannot be reached, is
dead; one that runs is not, however long it is silent. The driver answers each sign, so that a worker knows
whether it is heard: one that is not may have been replaced, and must leave no trace.
"""

from __future__ import annotations

import contextlib
import hmac
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from cluster.network import listen

BEAT_S = 0.2
SUSPECT_S = 1.0
"""Silence after which a worker is a suspect: a few signs must have been lost."""
ASK_AGAIN_S = 1.0
GIVE_UP_S = 10.0
"""Silence after which a worker whose node takes connections but answers nothing counts as dead."""
ENDED = "it ended without a word: killed, crashed, or its node was lost"
"""Why a worker counts as dead whose connection has ended."""

_MESSAGE = struct.Struct("<cQ")  # a kind, and a number that depends on it
_BEAT, _STATE, _HEARD, _LOOK, _CHANGED = b"B", b"S", b"H", b"L", b"C"
_HELLO = struct.Struct("<32sQ")
_TICK_S = 0.1


class ProcessState(StrEnum):
    """What a process is doing, as its own node sees it; `UNREACHABLE` when the node cannot be asked, and
    `UNKNOWN` when it can be reached but has not answered.
    """

    RUNNING = "running"
    STOPPED = "stopped"
    GONE = "gone"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


_STATES = tuple(ProcessState)


def process_state(pid: int) -> ProcessState:
    """Return the state of a process of this machine; a debugger's stop counts as running."""
    import psutil

    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return ProcessState.GONE
    except psutil.AccessDenied:  # it is there
        return ProcessState.RUNNING
    if status == psutil.STATUS_STOPPED:
        return ProcessState.STOPPED
    return ProcessState.GONE if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else ProcessState.RUNNING


def judge(*, closed: bool, silent_s: float, state: ProcessState | None) -> str | None:
    """Return why a worker counts as dead, or None while it does not.

    >>> judge(closed=False, silent_s=60.0, state=ProcessState.RUNNING) is None
    True

    Args:
        closed: Its connection has ended.
        silent_s: Seconds since its last sign.
        state: Of its process, as found since then; None when not known yet.
    """
    if closed:
        return ENDED
    if silent_s < SUSPECT_S or state is None or state is ProcessState.RUNNING:
        return None
    said = f"it gave no sign of life for {silent_s:.1f} s"
    if state is ProcessState.STOPPED:
        return f"{said} and its process is stopped (SIGSTOP, a debugger, or a paused container)"
    if state is ProcessState.GONE:
        return f"{said} and its process is gone"
    if state is ProcessState.UNREACHABLE:
        return f"{said} and its node cannot be reached"
    return f"{said} and its node answers nothing" if silent_s >= GIVE_UP_S else None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAddress:
    """Where the driver listens for signs of life.

    Attributes:
        token: 32 secret bytes that a worker must show.
    """

    host: str
    port: int
    token: bytes = field(repr=False)


class Beacon:
    """A worker's end: gives the signs from a thread of its own until `close`.

    Args:
        address: Of the driver.
        member: The number that the driver knows this worker by.
        on_lost: Called once, in the thread, when the driver's end has closed: it is gone.

    Attributes:
        progress: Any count that grows while the worker gets on; sent along.
        read: Returns what changes while the worker gets on; called before each sign, in the thread. None:
            nothing does.
    """

    def __init__(self, address: HeartbeatAddress, member: int, on_lost: Callable[[], None]) -> None:
        self.progress = 0
        self.read: Callable[[], object] | None = None
        self._seen: object = None
        self._on_lost = on_lost
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self._socket = socket.create_connection((address.host, address.port), timeout=GIVE_UP_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(_HELLO.pack(address.token, member))
        self._socket.settimeout(BEAT_S)
        self._thread = threading.Thread(target=self._beat, name="cluster-beacon", daemon=True)
        self._thread.start()

    @property
    def unheard_s(self) -> float:
        """Seconds since the driver last answered a sign."""
        return time.monotonic() - self._heard

    def close(self) -> None:
        """Stop giving signs. The driver takes it for the end of the process."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _beat(self) -> None:
        received, due = b"", 0.0
        while not self._closed.is_set():
            try:
                if time.monotonic() >= due:
                    due = time.monotonic() + BEAT_S
                    signs = _MESSAGE.pack(_BEAT, self.progress)
                    self._socket.send(signs + _MESSAGE.pack(_CHANGED, 0) if self._has_changed() else signs)
                data = self._socket.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                data = b""
            if not data:
                if not self._closed.is_set():
                    self._on_lost()
                return
            received += data
            while len(received) >= _MESSAGE.size:
                self._take(*_MESSAGE.unpack_from(received))
                received = received[_MESSAGE.size :]

    def _has_changed(self) -> bool:
        """Whether the worker has got on since the last sign."""
        read, seen = self.read, self._seen
        if read is not None:
            with contextlib.suppress(Exception):  # it is read while it changes; the next time it is not
                self._seen = read()
        return bool(self._seen != seen)

    def _take(self, kind: bytes, number: int) -> None:
        if kind == _HEARD:
            self._heard = time.monotonic()
        elif kind == _LOOK:
            found = _STATES.index(process_state(number))
            with contextlib.suppress(OSError):
                self._socket.send(_MESSAGE.pack(_STATE, number << 8 | found))


@dataclass(slots=True, kw_only=True)
class _Member:
    node: str
    pid: int
    begun: float
    link: socket.socket | None = None
    received: bytes = b""
    heard: float = 0.0
    progress: int = 0
    changed: float = 0.0
    closed: bool = False
    dead: str | None = None
    state: ProcessState | None = None
    asked: float = 0.0

    def silent_s(self, now: float) -> float:
        return now - (self.heard or self.begun)


Inquire = Callable[[str, int], ProcessState]
"""Finds out, in some seconds at most, the state of a process of a node: (node, pid)."""


class HeartbeatServer:
    """The driver's end: hears all workers, judges the silent ones, and says who is dead.

    Args:
        host: An address of this machine; it listens there alone.
        inquire: Asks a node on which no other worker can look. Called in a thread of its own.
        on_dead: Called once a member with (member, why), in the server's thread.
    """

    def __init__(self, host: str, inquire: Inquire, on_dead: Callable[[int, str], None]) -> None:
        import secrets

        self._listener = listen(host)
        self._listener.setblocking(False)
        token = secrets.token_bytes(32)
        self.address = HeartbeatAddress(host=host, port=self._listener.getsockname()[1], token=token)
        self._inquire = inquire
        self._on_dead = on_dead
        self._lock = threading.Lock()
        self._members: dict[int, _Member] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._inquiries: list[threading.Thread] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="cluster-heartbeat", daemon=True)
        self._thread.start()

    def expect(self, member: int, node: str, pid: int) -> None:
        """Watch over a worker from now on; it must call within the time in which it would be a suspect."""
        with self._lock:
            self._members[member] = _Member(node=node, pid=pid, begun=time.monotonic())

    def forget(self, member: int) -> None:
        """Watch over it no longer, and hang up."""
        with self._lock:
            gone = self._members.pop(member, None)
        if gone is not None and gone.link is not None:
            with contextlib.suppress(OSError):
                gone.link.shutdown(socket.SHUT_RDWR)

    def progress(self) -> dict[int, int]:
        """Return each member's last count."""
        with self._lock:
            return {number: member.progress for number, member in self._members.items()}

    def last_change(self) -> float:
        """When any member has last said that it had got on, on the clock of `time.monotonic`; 0.0 if none."""
        with self._lock:
            return max((member.changed for member in self._members.values()), default=0.0)

    def close(self) -> None:
        """Hang up on all, and wait for whoever still inquires. A second call does nothing."""
        if not self._closed.is_set():
            self._closed.set()
            with contextlib.suppress(OSError):  # where the system does not wake the thread so, its tick does
                self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            for inquiry in self._inquiries:
                inquiry.join()

    # ---------------------------------------------------------------- the thread

    def _serve(self) -> None:
        try:
            while not self._closed.is_set():
                for key, _ in self._selector.select(_TICK_S):
                    if key.fileobj is self._listener:
                        self._accept()
                    else:
                        self._read(key.fileobj, key.data)  # type: ignore[arg-type]
                self._judge()
        finally:
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            self._selector.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            link, _ = self._listener.accept()
            link.setblocking(False)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(link, selectors.EVENT_READ, bytearray())

    def _read(self, link: socket.socket, data: bytearray | _Member) -> None:
        try:
            received = link.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if isinstance(data, bytearray):
            data.extend(received)
            if not received or (len(data) >= _HELLO.size and not self._greet(link, data)):
                self._hang_up(link)
            return
        if not received:
            self._hang_up(link)
            data.closed, data.link = True, None
            return
        data.received += received
        while len(data.received) >= _MESSAGE.size:
            self._take(data, *_MESSAGE.unpack_from(data.received))
            data.received = data.received[_MESSAGE.size :]

    def _greet(self, link: socket.socket, hello: bytearray) -> bool:
        """Take a caller for the member that it says it is; False refuses it."""
        token, number = _HELLO.unpack_from(hello)
        with self._lock:
            member = self._members.get(number)
        if not hmac.compare_digest(token, self.address.token) or member is None or member.link is not None:
            return False
        member.link, member.heard = link, time.monotonic()
        member.received = bytes(hello[_HELLO.size :])
        self._selector.modify(link, selectors.EVENT_READ, member)
        return True

    def _hang_up(self, link: socket.socket) -> None:
        self._selector.unregister(link)
        link.close()

    def _take(self, member: _Member, kind: bytes, number: int) -> None:
        member.heard = time.monotonic()
        if kind == _BEAT:
            member.progress = number
            member.state = None  # it speaks: what was found out about it is past
            _send(member, _HEARD, 0)
        elif kind == _CHANGED:
            member.changed = member.heard
        elif kind == _STATE:
            self._found(member.node, number >> 8, _STATES[number & 0xFF])

    def _found(self, node: str, pid: int, state: ProcessState) -> None:
        with self._lock:
            for member in self._members.values():
                if (member.node, member.pid) == (node, pid):
                    member.state = state

    def _judge(self) -> None:
        now = time.monotonic()
        with self._lock:
            members = list(self._members.items())
        for number, member in members:
            if member.dead is not None:
                continue
            silent_s = member.silent_s(now)
            member.dead = judge(closed=member.closed, silent_s=silent_s, state=member.state)
            if member.dead is not None:
                self._on_dead(number, member.dead)
            elif silent_s >= SUSPECT_S and now - member.asked >= ASK_AGAIN_S:
                member.asked = now
                self._look(member, [other for _, other in members], now)

    def _look(self, suspect: _Member, others: list[_Member], now: float) -> None:
        """Find out about a suspect: a worker on its node that speaks looks, else somebody is sent."""
        for other in others:
            speaks = other.link is not None and other.silent_s(now) < SUSPECT_S
            if other is not suspect and other.node == suspect.node and speaks:
                _send(other, _LOOK, suspect.pid)
                return
        inquiry = threading.Thread(target=self._send_somebody, args=(suspect,), daemon=True)
        self._inquiries = [*(each for each in self._inquiries if each.is_alive()), inquiry]
        inquiry.start()

    def _send_somebody(self, suspect: _Member) -> None:
        asked = suspect.heard
        state = self._inquire(suspect.node, suspect.pid)
        if suspect.heard == asked:
            suspect.state = state


def _send(member: _Member, kind: bytes, number: int) -> None:
    if member.link is not None:
        with contextlib.suppress(OSError):
            member.link.send(_MESSAGE.pack(kind, number))
