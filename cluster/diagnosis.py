"""Judges what was found on the nodes of a cluster: what is wrong, where, and what to do about it.

Pure functions of an `Examination`, one for each thing that is judged; `diagnose` is all of them. An error is
what keeps a run from starting, or makes it fail or hang; a warning is what makes it slow, or fail later. The
limits stand here by name. They leave a healthy cluster alone: what differs only as much as a busy machine
makes it differ is no finding.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from cluster.examination import Disk, Examination, Interface, LinkFacts, NodeFacts
from cluster.preflight import differences

CLOCK_WARNING_S, CLOCK_ERROR_S = 2.0, 300.0
SHM_WARNING_BYTES, SHM_ERROR_BYTES = 512 * 2**20, 96 * 2**20
FILES_WARNING, FILES_ERROR = 4096, 1024
DISK_WARNING_BYTES, DISK_ERROR_BYTES = 5 * 2**30, 2**30
DISK_FULL = 0.95
"""Ray keeps no objects on a disk that is fuller than this."""
SLOW_BYTES_PER_S = 12.5e6
"""A link of less than 100 Mbit/s is slow, whatever the others are."""
FAST_BYTES_PER_S = 125e6
"""A link of more than 1 Gbit/s is never called slow beside quicker ones."""
SLOWER_THAN_OTHERS = 4.0
LATENCY_S = 0.02


class Severity(StrEnum):
    """How bad it is: whether a run fails, or is slow or in danger."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        check: What was looked at: versions, clock, interface, ports, bandwidth, latency, all-reduce, shm,
            files, disk, storage, node.
        node: Address of the node to go to.
        cause: What is wrong.
        fix: What to do there.
    """

    severity: Severity
    check: str
    node: str
    cause: str
    fix: str


def diagnose(found: Examination) -> list[Finding]:
    """Return all that is wrong, errors first."""
    findings = [
        *judge_presence(found),
        *judge_versions(found),
        *judge_clocks(found),
        *judge_interfaces(found),
        *judge_ports(found),
        *judge_bandwidth(found),
        *judge_latency(found),
        *judge_all_reduce(found),
        *judge_shm(found),
        *judge_open_files(found),
        *judge_disks(found),
        *judge_storage(found),
    ]
    return sorted(findings, key=lambda item: item.severity is not Severity.ERROR)


def judge_presence(found: Examination) -> Iterator[Finding]:
    """Nodes that are not there, or could not be looked at."""
    for address in found.missing:
        yield _error(
            "node",
            address,
            f"it is not a node of the cluster at {found.cluster}",
            f"start Ray on it: `ray start --address={found.cluster}`, or correct --nodes",
        )
    for node in found.nodes:
        if node.error is not None:
            yield _error(
                "node",
                node.address,
                f"it could not be looked at: {node.error}",
                "install the same Python, torch, Ray and version of this project there; where they are, look "
                "at its load, and at firewalls: Ray's workers connect to free ports of the driver's node, "
                f"{found.driver}",
            )


def judge_versions(found: Examination) -> Iterator[Finding]:
    """Nodes that run something else than this process."""
    for node in found.nodes:
        if node.versions is None:
            continue
        parts = [line.partition(": ")[2] for line in differences(found.here, {node.address: node.versions})]
        if node.ray != found.here_ray:
            parts.append(f"ray {node.ray} instead of {found.here_ray}")
        if parts:
            yield _error(
                "versions",
                node.address,
                f"it runs {', '.join(parts)}",
                "install there what is installed here, or the other way round",
            )


def judge_clocks(found: Examination) -> Iterator[Finding]:
    """Clocks that are wrong; where most of them differ from this one's alike, it is this one that is."""
    clocks = {found.driver: (0.0, 0.0)}
    for node in found.nodes:
        if node.clock_off_s is not None and node.address != found.driver:
            clocks[node.address] = (node.clock_off_s, node.clock_error_s)
    offsets = [offset for offset, _ in clocks.values()]
    right = min(statistics.median_low(offsets), statistics.median_high(offsets), key=abs)
    for address, (offset, error) in clocks.items():
        off_s = offset - right
        if abs(off_s) - error < CLOCK_WARNING_S:
            continue
        yield Finding(
            severity=Severity.ERROR if abs(off_s) >= CLOCK_ERROR_S else Severity.WARNING,
            check="clock",
            node=address,
            cause=f"its clock is {abs(off_s):.1f} s {'ahead' if off_s > 0 else 'behind'}",
            fix="let it be set by NTP there (chrony, systemd-timesyncd): tokens, certificates and the order "
            "of log lines and failures depend on it",
        )


def judge_interfaces(found: Examination) -> Iterator[Finding]:
    """Network interfaces that collectives are told to use, but cannot."""
    several = len(found.nodes) > 1
    for node in found.nodes:
        if node.no_route is not None:
            yield _error(
                "interface",
                node.address,
                f"it has no route to the other nodes: {node.no_route}",
                "put the nodes into one network, or add the route",
            )
        if several and node.address.startswith("127."):
            yield _error(
                "interface",
                node.address,
                "Ray knows this node by a loopback address, which other nodes cannot reach",
                "start Ray there with `--node-ip-address` and the address that the others reach",
            )
        for variable, value in node.chosen:
            why = _why_wrong(variable, value, node, several)
            if why is not None:
                right = f"={node.leaves_by}" if node.leaves_by else " to one that exists, or not at all"
                yield _error(
                    "interface",
                    node.address,
                    f"{variable}={value} in the environment of Ray's workers: {why}",
                    f"unset it where `ray start` is called there (the interface is then found by its route), "
                    f"or set {variable}{right}; then start Ray anew",
                )


def _why_wrong(variable: str, value: str, node: NodeFacts, several: bool) -> str | None:
    """Return why collectives cannot use the interfaces that a variable names; None where they can."""
    chosen = [item for item in node.interfaces if _names(variable, value, item.name)]
    if not chosen:
        there = ", ".join(item.name for item in node.interfaces)
        return f"there is no such interface, but {there}"
    usable = [item for item in chosen if item.is_up and item.addresses]
    if not usable:
        return f"{chosen[0].name} is down" if not chosen[0].is_up else f"{chosen[0].name} has no address"
    if several and node.leaves_by is not None and node.leaves_by not in {item.name for item in usable}:
        names = ", ".join(f"{item.name} ({_first_address(item)})" for item in usable)
        return f"the other nodes are reached by {node.leaves_by}, not by {names}"
    return None


def _names(variable: str, value: str, name: str) -> bool:
    """Whether a variable names an interface; NCCL takes beginnings of names, ``=`` before exact ones and
    ``^`` before a list of those to leave out. With that, others than containers' and the loopback are left.
    """
    if variable != "NCCL_SOCKET_IFNAME":
        return name in value.split(",")
    exact, excluded = "=" in value[:2], value.startswith("^")
    listed = [item for item in value.lstrip("^=").split(",") if item]
    hit = any(name == item if exact else name.startswith(item) for item in listed)
    return (not hit and not name.startswith(("lo", "docker"))) if excluded else hit


def _first_address(interface: Interface) -> str:
    return interface.addresses[0]


def judge_ports(found: Examination) -> Iterator[Finding]:
    """Nodes that do not reach each other; a node that nobody reaches, or that reaches nobody, once."""
    broken = [link for link in found.links if link.why is not None]
    told: set[tuple[str, str]] = set()
    for node in found.nodes:
        into = [link for link in found.links if link.target == node.address]
        if len(into) > 1 and all(link.why is not None for link in into):
            told |= {(link.source, link.target) for link in into}
            yield _port_finding(into[0], "no other node reaches it", node.address)
    for link in broken:
        if (link.source, link.target) not in told:
            back = next(
                (item for item in broken if (item.source, item.target) == (link.target, link.source)), None
            )
            way = "" if back is not None else ", but the other way round it works"
            cause = f"node {link.source} does not reach it{way}"
            yield _port_finding(link, cause, link.target)


def _port_finding(link: LinkFacts, cause: str, node: str) -> Finding:
    if link.ray_answers:
        return _error(
            "ports",
            node,
            f"{cause} at port {link.port} ({link.why}), while Ray's own port there answers: something "
            "between them lets only some ports through",
            f"open all TCP ports of node {node} to the other nodes (workers listen on any free port; "
            "`sysctl net.ipv4.ip_local_port_range` says which), in its firewall or security group",
        )
    return _error(
        "ports",
        node,
        f"{cause} at port {link.port} ({link.why}), nor Ray's own port there",
        f"look at the routes and firewalls on the way from node {link.source} to node {link.target}",
    )


def judge_bandwidth(found: Examination) -> Iterator[Finding]:
    """Links that are slow, by themselves or beside the others; a node all of whose links are, once."""
    speeds = {
        (link.source, link.target): link.bytes_per_s for link in found.links if link.bytes_per_s is not None
    }
    if not speeds:
        return
    usual = statistics.median_high(speeds.values())
    limit = max(SLOW_BYTES_PER_S, min(FAST_BYTES_PER_S, usual / SLOWER_THAN_OTHERS))
    slow = {pair: speed for pair, speed in speeds.items() if speed < limit}
    beside = f"; the others carry {_speed(usual)}" if len(slow) < len(speeds) else ""
    told: set[tuple[str, str]] = set()
    for end, words in ((0, "what it sends"), (1, "what it receives")):
        for node in found.nodes:
            own = [pair for pair in speeds if pair[end] == node.address]
            if not own or any(pair not in slow for pair in own) or all(pair in told for pair in own):
                continue
            if len(own) == 1 and len(slow) == len(speeds):
                continue  # two nodes, both directions slow: no node is to blame
            told |= set(own)
            worst = min(slow[pair] for pair in own)
            yield _warning(
                "bandwidth",
                node.address,
                f"{words} goes at {_speed(worst)} only{beside}",
                "look at that node's link on the way to the others: its speed and cable (`ethtool`), limits "
                "(`tc qdisc`), and other traffic",
            )
    for (source, target), speed in slow.items():
        if (source, target) not in told:
            yield _warning(
                "bandwidth",
                target,
                f"from node {source} it gets {_speed(speed)} only{beside}",
                "look at the network between these nodes, and at other traffic on it",
            )


def judge_latency(found: Examination) -> Iterator[Finding]:
    """Links with so long a way that every collective shows it."""
    for link in found.links:
        if link.latency_s is not None and link.latency_s >= LATENCY_S:
            yield _warning(
                "latency",
                link.target,
                f"a round trip from node {link.source} takes {link.latency_s * 1000:.0f} ms at best",
                "put the nodes of one run next to each other (one zone, one switch)",
            )


def judge_all_reduce(found: Examination) -> Iterator[Finding]:
    """An all-reduce that failed although the links work."""
    if found.all_reduce is not None:
        for node, why in found.all_reduce.errors:
            yield _error(
                "all-reduce",
                node,
                f"an all-reduce over one process of each node failed: {why}",
                "look at the interfaces that Gloo uses there (GLOO_SOCKET_IFNAME) and at firewalls",
            )


def judge_shm(found: Examination) -> Iterator[Finding]:
    """/dev/shm through which a DataLoader's workers hand over batches, and Ray its objects."""
    for node in found.nodes:
        if node.shm is None or node.shm.free_bytes >= SHM_WARNING_BYTES:
            continue
        full = node.shm.total_bytes >= SHM_WARNING_BYTES
        yield Finding(
            severity=Severity.ERROR if node.shm.free_bytes < SHM_ERROR_BYTES else Severity.WARNING,
            check="shm",
            node=node.address,
            cause=f"/dev/shm has {_size(node.shm.free_bytes)} free of {_size(node.shm.total_bytes)}: a "
            "DataLoader with workers hands its batches over there, and dies of a bus error when it is full",
            fix="remove what is left there by processes that are gone (`ls -l /dev/shm`)"
            if full
            else "make it larger: `docker run --shm-size=8g`, an emptyDir with medium Memory in Kubernetes, "
            "or `mount -o remount,size=8g /dev/shm`",
        )


def judge_open_files(found: Examination) -> Iterator[Finding]:
    """Limits on open files, which connections, worker processes and shared tensors count against."""
    for node in found.nodes:
        if node.open_files is None:
            continue
        now, most = node.open_files
        if now >= FILES_ERROR and most >= FILES_WARNING:
            continue
        yield Finding(
            severity=Severity.ERROR if most < FILES_ERROR else Severity.WARNING,
            check="files",
            node=node.address,
            cause=f"a process may have {now} files and connections open (at most {most})",
            fix="raise it before `ray start`: `ulimit -n 65536`, LimitNOFILE= in a systemd unit, `docker run "
            "--ulimit nofile=65536`",
        )


def judge_disks(found: Examination) -> Iterator[Finding]:
    """Disks that are nearly full."""
    for node in found.nodes:
        for disk in node.disks:
            used = 1.0 - disk.free_bytes / disk.total_bytes if disk.total_bytes else 0.0
            if disk.free_bytes < DISK_ERROR_BYTES:
                severity = Severity.ERROR
            elif disk.free_bytes < DISK_WARNING_BYTES or (_is_rays(disk) and used > DISK_FULL):
                severity = Severity.WARNING
            else:
                continue
            yield Finding(
                severity=severity,
                check="disk",
                node=node.address,
                cause=f"the disk of {disk.path} ({disk.use}) has {_size(disk.free_bytes)} free of "
                f"{_size(disk.total_bytes)}"
                + (
                    ", and Ray keeps nothing on a disk that is 95% full"
                    if _is_rays(disk) and used > DISK_FULL
                    else ""
                ),
                fix="make room there, or start Ray with another `--temp-dir`"
                if _is_rays(disk)
                else "make room there",
            )


def judge_storage(found: Examination) -> Iterator[Finding]:
    """A place for checkpoints and logs that not all nodes share."""
    storage = found.storage
    if storage is None:
        return
    if storage.here is not None:
        yield _error(
            "storage",
            found.driver,
            f"{storage.path}: {storage.here}",
            "make the folder, mount it, or use one that can be written",
        )
    for node, why in storage.nodes:
        if why is not None:
            yield _error(
                "storage",
                node,
                f"{storage.path}: {why}",
                "mount the same storage there at the same path, or use one that all nodes reach (NFS, s3://...)",
            )


def _is_rays(disk: Disk) -> bool:
    return disk.use == RAYS_FILES


RAYS_FILES = "Ray's files"


def _error(check: str, node: str, cause: str, fix: str) -> Finding:
    return Finding(severity=Severity.ERROR, check=check, node=node, cause=cause, fix=fix)


def _warning(check: str, node: str, cause: str, fix: str) -> Finding:
    return Finding(severity=Severity.WARNING, check=check, node=node, cause=cause, fix=fix)


def _speed(bytes_per_s: float) -> str:
    bits = bytes_per_s * 8
    return f"{bits / 1e9:.1f} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.0f} Mbit/s"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
