"""What is checked of the nodes before any work is given to them: versions, and whether they reach each other.

Each worker reports a `Report` of its process. The driver compares all of them with its own in a pure function
and names every node that differs. Then one worker of each node listens on the address that its peers will
use, and tries all others', so that a link that is down, or blocked in one direction, is named in seconds,
not after the timeout of a process group. Everything here raises `StartError`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster import network
from cluster.errors import StartError

OWN_PACKAGES = ("cluster", "modules", "orchestrator")
REACH_S = 4.0  # a SYN that is lost is sent again after 1 s and 3 s
_AT_ONCE = 32

logger = logging.getLogger("cluster")

Target = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What must be the same in all processes of a group.

    Attributes:
        python: major and minor version: pickled functions are its bytecode.
        torch: version without the build, such as "2.13.0": builds for CPUs and GPUs go together.
        project: the beginning of the hash of this project's own source files.
        where: the folder of this project.
    """

    python: str
    torch: str
    project: str
    where: str


def report() -> Report:
    """The report of this process. Imports torch."""
    import torch

    return Report(
        python=".".join(platform.python_version_tuple()[:2]),
        torch=str(torch.__version__).partition("+")[0],
        project=hash_project(),
        where=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    )


def hash_project() -> str:
    """Hash the source files of this project as it is installed here; takes some milliseconds."""
    digest = hashlib.sha256()
    for package in OWN_PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec is not None else []:
            for folder, folders, names in os.walk(root):
                folders[:] = sorted(name for name in folders if name != "__pycache__")
                for name in sorted(names):
                    if name.endswith(".py"):
                        path = os.path.join(folder, name)
                        digest.update(os.path.relpath(path, root).encode())
                        with open(path, "rb") as file:
                            digest.update(file.read())
    return digest.hexdigest()[:12]


def differences(here: Report, nodes: Mapping[str, Report]) -> list[str]:
    """Return a line for each node that differs, sorted; pure.

    Args:
        here: the driver's report.
        nodes: each node's, by its address.
    """
    lines = []
    for address, there in sorted(nodes.items()):
        parts = [
            f"{name} {getattr(there, name)} instead of {getattr(here, name)}"
            for name in ("python", "torch")
            if getattr(there, name) != getattr(here, name)
        ]
        if there.project != here.project:
            parts.append(
                f"other source of this project (in {there.where}, {there.project} instead of {here.project})"
            )
        if parts:
            lines.append(f"  node {address}: {', '.join(parts)}")
    return lines


def check_versions(here: Report, nodes: Mapping[str, Report]) -> None:
    """Refuse nodes whose versions are not the driver's.

    Raises:
        StartError: some differ; it names them all.
    """
    lines = differences(here, nodes)
    if lines:
        raise StartError(
            f"{len(lines)} of {len(nodes)} nodes have other versions than this process:\n"
            + "\n".join(lines)
            + "\nInstall the same versions of Python, torch and this project on every node."
        )


def warn_of(address: str, there: Report | None) -> bool:
    """Whether a node that joins later differs from this process; a warning says in what."""
    lines = [] if there is None else differences(report(), {address: there})
    if lines:
        logger.warning(
            "A worker that was to replace a lost one is not used, because its node has other versions:\n%s",
            lines[0],
        )
    return bool(lines)


class Probe:
    """One node's end of the check whether nodes reach each other."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def open(self, peer: str) -> Target:
        """Listen on the address that leads to `peer`, and return where."""
        self.close()
        self._listener = network.listen(network.address_towards(peer))
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def reach(self, targets: Sequence[Target]) -> list[str | None]:
        """Try all at once, at most for `REACH_S` seconds; for each: None, or why it cannot be reached."""
        if not targets:
            return []
        with ThreadPoolExecutor(min(len(targets), _AT_ONCE)) as threads:
            return list(threads.map(_try, targets))

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def check_links(addresses: Sequence[str], found: Sequence[Sequence[str | None]], driver: str) -> None:
    """Refuse nodes that do not reach the driver, or each other; pure.

    Args:
        addresses: the nodes.
        found: for each node what `Probe.reach` said of the driver, and then of each node.
        driver: the driver's address.

    Raises:
        StartError: some do not; it names both ends of each link.
    """
    names = [f"the driver at {driver}", *(f"node {address}" for address in addresses)]
    lines = [
        f"  node {address} does not reach {name}: {why}"
        for address, reasons in zip(addresses, found, strict=True)
        for name, why in zip(names, reasons, strict=True)
        if why is not None
    ]
    if lines:
        raise StartError(
            f"{len(lines)} links between the nodes of this group do not work:\n"
            + "\n".join(lines)
            + "\nWorkers connect to each other on any free port: check routes and firewalls between these "
            "nodes, or take the node out of the cluster."
        )


def _try(target: Target) -> str | None:
    try:
        socket.create_connection(target, timeout=REACH_S).close()
    except OSError as error:
        return "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error))
    return None
