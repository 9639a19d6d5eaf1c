"""Which address and which interface of this host lead to a peer, and sockets that listen there and nowhere
else.

Nothing here sends a packet. The loopback address is used exactly when the peer is reached over it, so a group
on one machine is never visible from outside. An interface that cannot be found is reported as None, and then
the caller leaves the choice to Gloo or NCCL.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import MutableMapping

from cluster.errors import StartError

_SIOCGIFADDR = {"linux": 0x8915, "darwin": 0xC0206921}
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def address_towards(peer: str) -> str:
    """The address of this host that packets to `peer` would leave from.

    Args:
        peer: an IPv4 or IPv6 address.

    Raises:
        StartError: no route leads there.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(peer).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))  # for UDP this only looks the route up
        except OSError as error:
            raise StartError(
                f"No route from {socket.gethostname()} to {peer}: {error.strerror}. "
                "Check that the nodes of the cluster share a network."
            ) from error
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The interface that holds an address of this host, such as "eth0"; None if it cannot be told."""
    wanted = ipaddress.ip_address(address)
    if wanted.is_loopback:
        return "lo0" if sys.platform == "darwin" else "lo"
    request = _SIOCGIFADDR.get(sys.platform)
    if request is None or wanted.version == 6:
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            packed = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), request, packed)
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def name_interface(address: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Have Gloo and NCCL use the interface that holds `address`, unless the user has named one."""
    interface = interface_of(address)
    if interface is not None:
        for variable in INTERFACE_VARIABLES:
            environ.setdefault(variable, interface)


def listen(address: str) -> socket.socket:
    """A TCP socket that listens on a free port of `address` only.

    Raises:
        StartError: the address is not this host's, or no port is free.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.bind((address, 0))
        server.listen(1024)
    except OSError as error:
        server.close()
        raise StartError(
            f"Cannot listen on {address}: {error.strerror}. Check that this host still has that address."
        ) from error
    return server
