"""What a doctor writes down about the nodes of a cluster: facts only, no opinion.

All of it is plain, so that it travels from the nodes to the driver and can be printed as JSON. What could not
be found out is None; a node that could not be looked at has the reason in its `error`, and nothing else.
`cluster.diagnosis` judges.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.preflight import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface of a node.

    Attributes:
        addresses: Its IPv4 and IPv6 addresses.
        is_up: The system has it in use.
        mtu: Bytes of the largest packet.
    """

    name: str
    addresses: tuple[str, ...]
    is_up: bool
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A place that a run writes to.

    Attributes:
        use: What it is for, in words.
    """

    use: str
    path: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What was found on one node.

    Attributes:
        address: As Ray knows it.
        error: Why it could not be looked at; the rest is as it was created then.
        host: Its name.
        versions: What it runs.
        ray: The version of Ray.
        clock_off_s: How far its clock is ahead of this one's; None where it is this machine.
        clock_error_s: How much of that may come from the way of the question.
        interfaces: All of them.
        leaves_by: The interface that has the route to the other nodes; None without other nodes, or where it
            cannot be told.
        no_route: Why there is no route to another node.
        chosen: What the environment of Ray's workers there says of interfaces, by variable.
        shm: /dev/shm; None where there is none.
        open_files: How many files and connections a process may have open: now, and if it asks for more.
        disks: Places that a run writes to.
    """

    address: str
    error: str | None = None
    host: str = ""
    versions: Report | None = None
    ray: str = ""
    clock_off_s: float | None = None
    clock_error_s: float = 0.0
    interfaces: tuple[Interface, ...] = ()
    leaves_by: str | None = None
    no_route: str | None = None
    chosen: tuple[tuple[str, str], ...] = ()
    shm: Disk | None = None
    open_files: tuple[int, int] | None = None
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """What was found of the way from one node to another.

    Attributes:
        source, target: Addresses of the nodes.
        port: That the target listened on.
        why: Why it was not reached; None where it was.
        ray_answers: The target's Ray was reached, where the port was not; None where that was not tried.
        latency_s: The quickest of some round trips; None where it was not measured.
        bytes_per_s: What one connection carries; None where it was not measured.
    """

    source: str
    target: str
    port: int
    why: str | None = None
    ray_answers: bool | None = None
    latency_s: float | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceFacts:
    """An all-reduce over one process of each node.

    Attributes:
        size_bytes: Of each node's tensor.
        seconds: The quickest of some; None where it failed.
        errors: What failed, by node.
        why_not: Why it was not tried.
    """

    size_bytes: int
    seconds: float | None = None
    errors: tuple[tuple[str, str], ...] = ()
    why_not: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFacts:
    """Whether the nodes share a place that a run writes to.

    Attributes:
        path: As the user gave it, made absolute.
        here: Why this process cannot write there; None where it can.
        nodes: For each node None, or why it does not see what this process has written, or cannot write.
    """

    path: str
    here: str | None = None
    nodes: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All that was found.

    Attributes:
        cluster: Address of the cluster; None where this machine was looked at alone.
        driver: Address of this process's node.
        here: The versions of this process.
        here_ray: Its version of Ray.
        nodes: One each.
        missing: Nodes that were asked for and are not in the cluster.
        links: Of all ordered pairs of nodes.
        all_reduce: None with a single node.
        storage: None where no path was given.
    """

    cluster: str | None
    driver: str
    here: Report
    here_ray: str
    nodes: tuple[NodeFacts, ...]
    missing: tuple[str, ...] = ()
    links: tuple[LinkFacts, ...] = ()
    all_reduce: ReduceFacts | None = None
    storage: StorageFacts | None = None
