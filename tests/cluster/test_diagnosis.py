"""What is wrong with a cluster, judged from facts: each fault is named with its node, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.diagnosis import RAYS_FILES, Finding, Severity, diagnose
from cluster.examination import (
    Disk,
    Examination,
    Interface,
    LinkFacts,
    NodeFacts,
    ReduceFacts,
    StorageFacts,
)
from cluster.preflight import Report

GIB = 2**30
HERE = Report(python="3.11", torch="2.13.0", project="abc", where="/opt/project")
A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def node(address: str, **changes: Any) -> NodeFacts:
    """A node as it should be, but for the changes."""
    facts = NodeFacts(
        address=address,
        host=f"host{address[-1]}",
        versions=HERE,
        ray="2.60.0",
        clock_off_s=0.01,
        clock_error_s=0.001,
        interfaces=(
            Interface(name="eth0", addresses=(address,), is_up=True, mtu=1500),
            Interface(name="eth1", addresses=("192.0.2.5",), is_up=True, mtu=1500),
            Interface(name="ib0", addresses=("192.0.2.6",), is_up=False, mtu=2044),
            Interface(name="lo", addresses=("127.0.0.1",), is_up=True, mtu=65536),
        ),
        leaves_by="eth0",
        shm=Disk(use="shared memory", path="/dev/shm", total_bytes=16 * GIB, free_bytes=15 * GIB),
        open_files=(65536, 65536),
        disks=(Disk(use=RAYS_FILES, path="/tmp/ray", total_bytes=200 * GIB, free_bytes=80 * GIB),),
    )
    return replace(facts, **changes)


def links(**changes: Any) -> tuple[LinkFacts, ...]:
    """All links of three nodes at 10 Gbit/s; the changes are a function of source and target."""
    change: Callable[[str, str], dict[str, Any]] = changes.get("change", lambda source, target: {})
    return tuple(
        replace(
            LinkFacts(source=source, target=target, port=40000, latency_s=2e-4, bytes_per_s=1.25e9),
            **change(source, target),
        )
        for source, target in permutations((A, B, C), 2)
    )


def examined(*nodes: NodeFacts, **changes: Any) -> Examination:
    """Three nodes, with those given in the place of healthy ones."""
    by_address = {address: node(address) for address in (A, B, C)} | {item.address: item for item in nodes}
    found = Examination(
        cluster=f"{A}:6379",
        driver=A,
        here=HERE,
        here_ray="2.60.0",
        nodes=tuple(by_address.values()),
        links=links(),
        all_reduce=ReduceFacts(size_bytes=4 * 2**20, seconds=0.01),
        storage=StorageFacts(path="/shared", nodes=((A, None), (B, None), (C, None))),
    )
    return replace(found, **changes)


def only(found: Examination) -> Finding:
    """The one finding that there is."""
    (finding,) = diagnose(found)
    return finding


def test_a_healthy_cluster_has_no_findings() -> None:
    """Nothing is said of nodes that are as they should be, of a machine alone, or of one whose interfaces are
    named rightly.
    """
    assert diagnose(examined()) == []
    named = (("GLOO_SOCKET_IFNAME", "eth0"), ("NCCL_SOCKET_IFNAME", "eth"))
    assert diagnose(examined(node(B, chosen=named))) == []
    alone = examined(cluster=None, driver="127.0.0.1", links=(), all_reduce=None, storage=None)
    alone = replace(alone, nodes=(node("127.0.0.1", leaves_by=None, clock_off_s=None),))
    assert diagnose(alone) == []


@given(
    speeds=st.lists(st.floats(2e8, 5e9), min_size=6, max_size=6),
    latencies=st.lists(st.floats(1e-5, 0.015), min_size=6, max_size=6),
    clocks=st.lists(st.floats(-0.9, 0.9), min_size=3, max_size=3),
)
def test_what_a_busy_machine_makes_differ_is_no_finding(
    speeds: list[float], latencies: list[float], clocks: list[float]
) -> None:
    """Fast links that differ tenfold, round trips of milliseconds and clocks within a second pass."""
    measured = iter(zip(speeds, latencies, strict=True))

    def change(source: str, target: str) -> dict[str, Any]:
        speed, latency = next(measured)
        return {"bytes_per_s": speed, "latency_s": latency}

    nodes = [node(address, clock_off_s=off_s) for address, off_s in zip((A, B, C), clocks, strict=True)]
    assert diagnose(examined(*nodes, links=links(change=change))) == []


def _disk(total: float, free: float, use: str = "shared memory", path: str = "/dev/shm") -> Disk:
    return Disk(use=use, path=path, total_bytes=int(total * GIB), free_bytes=int(free * GIB))


@pytest.mark.parametrize(
    ("changes", "severity", "check", "cause", "fix"),
    [
        (
            {"versions": replace(HERE, torch="2.1.7")},
            "error",
            "versions",
            "torch 2.1.7 instead of",
            "install",
        ),
        ({"ray": "2.51.0"}, "error", "versions", "ray 2.51.0 instead of 2.60.0", "install"),
        ({"versions": replace(HERE, project="x")}, "error", "versions", "other source of this", "install"),
        ({"clock_off_s": 90.0}, "warning", "clock", "90.0 s ahead", "NTP"),
        ({"clock_off_s": -4000.0}, "error", "clock", "4000.0 s behind", "NTP"),
        ({"shm": _disk(0.0625, 0.0625)}, "error", "shm", "64 MiB free of 64 MiB", "--shm-size"),
        ({"shm": _disk(16, 0.25)}, "warning", "shm", "256 MiB free of 16.0 GiB", "processes that are gone"),
        ({"open_files": (256, 256)}, "error", "files", "256 files and connections", "ulimit -n"),
        ({"open_files": (2048, 2048)}, "warning", "files", "at most 2048", "ulimit -n"),
        ({"disks": (_disk(100, 0.5, "temporary files", "/tmp"),)}, "error", "disk", "512 MiB free", "room"),
        ({"disks": (_disk(2000, 60, RAYS_FILES, "/x"),)}, "warning", "disk", "95% full", "--temp-dir"),
        ({"error": "there is no module 'cluster'"}, "error", "node", "no module 'cluster'", "install"),
        ({"no_route": "unreachable"}, "error", "interface", "no route to the other nodes", "network"),
        (
            {"chosen": (("GLOO_SOCKET_IFNAME", "eth1"),)},
            *("error", "interface", "reached by eth0, not by eth1 (192.0.2.5)", "GLOO_SOCKET_IFNAME=eth0"),
        ),
        (
            {"chosen": (("GLOO_SOCKET_IFNAME", "eno7"),)},
            *("error", "interface", "there is no such interface, but eth0, eth1, ib0, lo", "unset"),
        ),
        ({"chosen": (("NCCL_SOCKET_IFNAME", "ib"),)}, "error", "interface", "ib0 is down", "=eth0"),
        ({"chosen": (("NCCL_SOCKET_IFNAME", "^eth"),)}, "error", "interface", "ib0 is down", "=eth0"),
        ({"chosen": (("NCCL_SOCKET_IFNAME", "=eth"),)}, "error", "interface", "no such interface", "=eth0"),
    ],
)
def test_a_fault_of_a_node_is_named_with_cause_and_fix(
    changes: dict[str, Any], severity: str, check: str, cause: str, fix: str
) -> None:
    """One thing wrong with one node is one finding, of that node."""
    found = only(examined(node(B, **changes)))
    assert (found.severity, found.check, found.node) == (severity, check, B)
    assert cause in found.cause
    assert fix in found.fix


def test_a_wrong_clock_of_the_driver_is_the_drivers() -> None:
    """Where all others agree, the clock that they differ from is wrong."""
    nodes = [node(A, clock_off_s=None), node(B, clock_off_s=60.0), node(C, clock_off_s=60.2)]
    found = only(examined(*nodes))
    assert (found.check, found.node, found.cause) == ("clock", A, "its clock is 60.0 s behind")
    assert only(replace(examined(*nodes[:2]), nodes=tuple(nodes[:2]))).node == B


def test_a_blocked_port_is_told_from_a_lost_node() -> None:
    """A port that does not answer where Ray's does is a firewall's; both ends and the direction are named,
    and a node that nobody reaches once.
    """

    def one_way(source: str, target: str) -> dict[str, Any]:
        return {"why": "no answer", "ray_answers": True} if (source, target) == (B, C) else {}

    found = only(examined(links=links(change=one_way)))
    assert (found.severity, found.check, found.node) == ("error", "ports", C)
    assert f"node {B} does not reach it, but the other way round it works at port 40000" in found.cause
    assert "lets only some ports through" in found.cause

    def nobody(source: str, target: str) -> dict[str, Any]:
        return {"why": "no answer", "ray_answers": False} if target == C else {}

    found = only(examined(links=links(change=nobody)))
    assert (found.node, found.check) == (C, "ports")
    assert found.cause.startswith("no other node reaches it at port 40000 (no answer), nor Ray's own port")


def test_a_slow_node_is_told_from_a_slow_link() -> None:
    """Where all that a node sends is slow it is the node; where one link is, the link; where all are and
    below 100 Mbit/s, each of them.
    """

    def slow(*pairs: tuple[str, str], speed: float = 2.5e6) -> tuple[LinkFacts, ...]:
        return links(change=lambda *pair: {"bytes_per_s": speed} if not pairs or pair in pairs else {})

    found = only(examined(links=slow((B, A), (B, C))))
    assert (found.severity, found.check, found.node) == (Severity.WARNING, "bandwidth", B)
    assert found.cause == "what it sends goes at 20 Mbit/s only; the others carry 10.0 Gbit/s"
    found = only(examined(links=slow((A, C))))
    assert (found.node, found.cause) == (
        C,
        f"from node {A} it gets 20 Mbit/s only; the others carry 10.0 Gbit/s",
    )
    assert [item.check for item in diagnose(examined(links=slow()))] == ["bandwidth"] * 3
    assert diagnose(examined(links=slow((A, C), speed=2e8))) == []


def test_long_ways_failed_sums_and_unshared_storage_are_named() -> None:
    """A link of high latency, a failed all-reduce, a place that a node does not share, and a node that is not
    there have their findings; errors come first.
    """

    def far(source: str, target: str) -> dict[str, Any]:
        return {"latency_s": 0.05} if (source, target) == (A, C) else {}

    findings = diagnose(
        examined(
            links=links(change=far),
            missing=("10.0.0.9",),
            all_reduce=ReduceFacts(size_bytes=4, errors=((B, "Connection closed"),)),
            storage=StorageFacts(path="/shared", nodes=((A, None), (B, None), (C, "it is another disk"))),
        )
    )
    assert [(item.check, item.node) for item in findings] == [
        ("node", "10.0.0.9"),
        ("all-reduce", B),
        ("storage", C),
        ("latency", C),
    ]
    assert "ray start --address=10.0.0.1:6379" in findings[0].fix
    assert "50 ms" in findings[-1].cause
    unwritable = StorageFacts(path="/shared", here="it cannot be written (Read-only file system)")
    assert only(examined(storage=unwritable)).node == A
