"""Measures the way from one node to another: how long a round trip takes, and what one connection carries.

Each end of a link runs a `LinkMeter`, which listens on one address and answers those who show its token.
Measuring takes about half a second, sends what the link carries in a third of one, and at most 256 MB. The
quickest round trip counts, and of the throughput what has arrived, as the receiver saw it, so a busy machine
makes a link look little slower than it is. A peer that hangs up or says nothing raises `OSError`.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import struct
import threading
import time

from cluster import network

PINGS = 30
SEND_S = 0.3
TIMEOUT_S = 10.0

_TOKEN_BYTES = 32
_PING, _SEND = b"P", b"S"
_CHUNK = bytes(256 * 1024)
_MOST_BYTES = 256 * 10**6
_BUFFER_BYTES = 512 * 1024  # what waits in the sender is bounded, so a slow link does not drain for long
_REPORT = struct.Struct("<Qd")


class LinkMeter:
    """One node's end: listens from a thread of its own until `close`.

    Args:
        address: Of this machine; it listens there alone.

    Attributes:
        token: What callers must show.
        port: Where it listens.
    """

    def __init__(self, address: str) -> None:
        self.token = secrets.token_bytes(_TOKEN_BYTES)
        self._listener = network.listen(address)
        self.address = address
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="cluster-link-meter", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            link.settimeout(TIMEOUT_S)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not hmac.compare_digest(_read(link, _TOKEN_BYTES), self.token):
                return
            while kind := link.recv(1):
                if kind == _PING:
                    link.sendall(kind)
                else:
                    link.sendall(_REPORT.pack(*_drain(link)))
                    return


def measure(address: str, port: int, token: bytes) -> tuple[float, float]:
    """Measure the way to another node's meter.

    Returns:
        Seconds of the quickest round trip, and bytes per second.

    Raises:
        OSError: It cannot be reached, refuses the token, or does not answer within ten seconds.
    """
    with socket.create_connection((address, port), timeout=TIMEOUT_S) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        link.sendall(token)
        quickest = min(_ping(link) for _ in range(PINGS))
        link.sendall(_SEND)
        sent, until = 0, time.monotonic() + SEND_S
        while sent < _MOST_BYTES and time.monotonic() < until:
            sent += link.send(_CHUNK)
        link.shutdown(socket.SHUT_WR)
        received, seconds = _REPORT.unpack(_read(link, _REPORT.size))
    return quickest, received / max(seconds, 1e-9)


def _ping(link: socket.socket) -> float:
    began = time.perf_counter()
    link.sendall(_PING)
    _read(link, 1)
    return time.perf_counter() - began


def _drain(link: socket.socket) -> tuple[int, float]:
    """Take all that comes; return how many bytes came behind the first piece, and in how many seconds."""
    buffer = bytearray(len(_CHUNK))
    received = link.recv_into(buffer)
    began = time.perf_counter()
    total = 0
    while received:
        received = link.recv_into(buffer)
        total += received
    return total, time.perf_counter() - began


def _read(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = link.recv(size - len(data))
        if not more:
            raise ConnectionError("the peer has hung up")
        data += more
    return data
