"""Measuring a link, over loopback."""

from __future__ import annotations

import socket

import pytest

from cluster.link_meter import LinkMeter, measure


def test_a_link_is_measured() -> None:
    """Loopback's round trips are short and it carries more than any cable of ours would."""
    meter = LinkMeter("127.0.0.1")
    try:
        latency_s, bytes_per_s = measure(meter.address, meter.port, meter.token)
    finally:
        meter.close()
    assert 0 < latency_s < 0.1
    assert bytes_per_s > 1e7


def test_a_stranger_is_not_served() -> None:
    """Who does not show the token is hung up on, and a meter that is closed listens no more."""
    meter = LinkMeter("127.0.0.1")
    with pytest.raises(OSError):
        measure(meter.address, meter.port, bytes(32))
    meter.close()
    with pytest.raises(OSError), socket.create_connection((meter.address, meter.port), timeout=5):
        pass
