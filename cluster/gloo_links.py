"""Frees a collective that waits for a peer which will never answer, by closing Gloo's connections under it.

Gloo cannot be told to give up: its `abort` returns, and the collective stays blocked until its timeout. With
its connections shut down the collective raises within milliseconds, and a new process group can be formed in
the same process. Gloo's connections are told from all others of the process by the addresses that the members
of the process group listen on: found when the group is formed, exchanged through the store. Only connections
are shut down, never a listener, which would end the process. Linux only, where a process can see its own
sockets; elsewhere `listeners` is empty and nothing is closed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator

Address = tuple[str, int]


def listeners() -> frozenset[Address]:
    """Return the addresses that this process listens on over TCP."""
    found = set()
    for own in _sockets():
        with own:
            if own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.add(_address(own.getsockname()))
    return frozenset(found)


def close_links(members: Collection[Address]) -> int:
    """Shut down this process's connections of which either end is an address that a member listens on.

    Args:
        members: Where Gloo listens in each process of the group, this one included.

    Returns:
        How many there were.
    """
    closed = 0
    for own in _sockets():
        with own:
            try:
                ends = {_address(own.getsockname()), _address(own.getpeername())}
                if ends & set(members):
                    own.shutdown(socket.SHUT_RDWR)
                    closed += 1
            except OSError:  # not connected, or not any longer
                continue
    return closed


def _sockets() -> Iterator[socket.socket]:
    """Yield a copy of each of this process's TCP sockets; closing it leaves the original open."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return
    for name in names:
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            copy = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # it has been closed meanwhile
            continue
        if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
            yield copy
        else:
            copy.close()


def _address(name: tuple[object, ...]) -> Address:
    return str(name[0]), int(str(name[1]))
