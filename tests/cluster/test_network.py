"""Addresses, interfaces and sockets: `network` and the store of `process_group`."""

from __future__ import annotations

import socket
import sys

import pytest

from cluster.errors import StartError
from cluster.network import address_towards, interface_of, listen, name_interface
from cluster.process_group import StoreServer, connect_store


def own_address() -> str | None:
    """An address of this machine other than loopback, if it has one."""
    try:
        address = address_towards("192.0.2.1")
    except StartError:
        return None
    return None if address.startswith("127.") else address


def test_loopback_leads_to_loopback() -> None:
    """A peer on this machine is reached over loopback."""
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == ("lo0" if sys.platform == "darwin" else "lo")


def test_the_interface_of_a_routed_address_is_found() -> None:
    """The interface is the one that holds the address that leads to the peer."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no route to the outside")
    name = interface_of(address)
    assert name in {interface for _, interface in socket.if_nameindex()}
    assert name != interface_of("127.0.0.1")


def test_an_address_of_nobody_has_no_interface() -> None:
    """An address that this machine does not hold gives None, and then nothing is set."""
    environ: dict[str, str] = {}
    name_interface("198.51.100.7", environ)
    assert interface_of("198.51.100.7") is None
    assert environ == {}


def test_what_the_user_has_set_stays() -> None:
    """Only the variable that is unset is set."""
    environ = {"NCCL_SOCKET_IFNAME": "mine"}
    name_interface("127.0.0.1", environ)
    assert environ == {"NCCL_SOCKET_IFNAME": "mine", "GLOO_SOCKET_IFNAME": str(interface_of("127.0.0.1"))}


def test_a_listening_socket_is_bound_to_its_address_only() -> None:
    """Another address of the same machine is refused."""
    with listen("127.0.0.1") as server:
        port = server.getsockname()[1]
        assert server.getsockname()[0] == "127.0.0.1"
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        other = own_address()
        if other is not None:
            with pytest.raises(OSError):
                socket.create_connection((other, port), timeout=5)


def test_an_address_of_another_machine_is_refused_with_its_name() -> None:
    """The error says which address it was."""
    with pytest.raises(StartError, match=r"198\.51\.100\.7"):
        listen("198.51.100.7")


def test_the_store_listens_on_its_address_only_and_stops_at_close() -> None:
    """The driver's store is reached at its address, at no other, and at none after close."""
    server = StoreServer("127.0.0.1", timeout_s=10)
    try:
        store = connect_store(server.address, timeout_s=10)
        store.set("key", "value")
        assert store.get("key") == b"value"
        other = own_address()
        if other is not None:
            with pytest.raises(OSError):
                socket.create_connection((other, server.address.port), timeout=5)
        del store
    finally:
        server.close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.address.port), timeout=5)
