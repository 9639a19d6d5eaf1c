"""``orchestrator doctor``: what is wrong with a cluster, where, and what to do, before a run finds out.

It looks at the cluster that a run from here would use; where there is none, at this machine alone, without
Ray. Facts come first, then findings, errors before warnings. The exit status is 0 where a run can work, 1
where something is wrong, and 2 where the cluster could not be examined.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from typing import TYPE_CHECKING

SUMMARY = "examine the cluster, or this machine, and say what is wrong before a run"

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.diagnosis import Finding
    from cluster.examination import Examination, NodeFacts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to look and how to tell."""
    parser.add_argument(
        "--address", help="host:port of the cluster's head; RAY_ADDRESS, or the one on this machine, without"
    )
    parser.add_argument(
        "--nodes", help="look at these nodes only: addresses, with commas; each must be there"
    )
    parser.add_argument("--storage", help="a folder or URI that every node must be able to write to")
    parser.add_argument("--strict", action="store_true", help="end with status 1 after warnings too")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Examine, print, and return the exit status."""
    from cluster import diagnosis, doctor, session
    from cluster.errors import ClusterError

    if arguments.address:
        os.environ["RAY_ADDRESS"] = arguments.address
    nodes = [item.strip() for item in (arguments.nodes or "").split(",") if item.strip()]
    began = time.monotonic()
    try:
        if session.find() is None:
            if nodes:
                raise ClusterError(
                    f"--nodes {arguments.nodes} without a cluster: none runs on this machine, and "
                    "RAY_ADDRESS names none. Give --address."
                )
            found = doctor.examine_machine(arguments.storage)
        else:
            found = doctor.examine_cluster(arguments.storage, nodes)
    except ClusterError as error:
        print(f"orchestrator doctor: {error}", file=sys.stderr)
        return 2
    findings = diagnosis.diagnose(found)
    seconds = time.monotonic() - began
    print(as_json(found, findings, seconds) if arguments.json else as_text(found, findings, seconds))
    errors = [item for item in findings if item.severity is diagnosis.Severity.ERROR]
    return 1 if errors or (arguments.strict and findings) else 0


def as_json(found: Examination, findings: Sequence[Finding], seconds: float) -> str:
    """Return all facts and findings as one JSON object."""
    return json.dumps(
        {
            "findings": [dataclasses.asdict(item) for item in findings],
            "seconds": round(seconds, 2),
            **dataclasses.asdict(found),
        },
        indent=2,
    )


def as_text(found: Examination, findings: Sequence[Finding], seconds: float) -> str:
    """Lay facts and findings out as text."""
    where = "this machine" if found.cluster is None else f"the cluster at {found.cluster}"
    number = "" if found.cluster is None else f"{len(found.nodes)} node{'s' * (len(found.nodes) != 1)} of "
    lines = [f"Examined {number}{where} in {seconds:.1f} s.", "", *_table(found.nodes), *_links(found)]
    lines.append("")
    if not findings:
        return "\n".join([*lines, "Nothing is wrong."])
    for item in findings:
        lines += [
            f"{item.severity.upper():<8} node {item.node}, {item.check}: {item.cause}.",
            f"         {item.fix}.",
        ]
    errors = sum(item.severity == "error" for item in findings)
    warnings = len(findings) - errors
    lines += ["", f"{_count(errors, 'error')}, {_count(warnings, 'warning')}."]
    return "\n".join(lines)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _table(nodes: Sequence[NodeFacts]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("node", "python", "torch", "ray", "clock", "/dev/shm free", "open files", "interface")
    ]
    for node in nodes:
        if node.error is not None or node.versions is None:
            rows.append((node.address, *["?"] * 7))
            continue
        clock = "this one" if node.clock_off_s is None else f"{node.clock_off_s:+.3f} s"
        shm = "none" if node.shm is None else f"{node.shm.free_bytes / 2**30:.1f} GiB"
        files = "?" if node.open_files is None else f"{node.open_files[0]} ({node.open_files[1]})"
        versions = node.versions
        rows.append(
            (
                node.address,
                versions.python,
                versions.torch,
                node.ray,
                clock,
                shm,
                files,
                node.leaves_by or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _links(found: Examination) -> list[str]:
    """Say how the links are: the slowest of each kind."""
    lines = []
    measured = [
        (link.bytes_per_s, link.latency_s, f"{link.source} to {link.target}")
        for link in found.links
        if link.bytes_per_s is not None and link.latency_s is not None
    ]
    if measured:
        slowest, _, slow_pair = min(measured)
        _, longest, long_pair = max(measured, key=lambda item: item[1])
        lines.append(
            f"links: {len(measured)} measured; at least {slowest * 8e-9:.2f} Gbit/s ({slow_pair}), "
            f"round trips at most {longest * 1000:.2f} ms ({long_pair})"
        )
    reduce = found.all_reduce
    if reduce is not None:
        told = (
            f"not tried: {reduce.why_not}"
            if reduce.why_not
            else "failed"
            if reduce.seconds is None
            else f"{reduce.seconds * 1000:.0f} ms"
        )
        lines.append(f"all-reduce of {reduce.size_bytes / 2**20:.0f} MiB over all nodes: {told}")
    if found.storage is not None:
        right = found.storage.here is None and all(why is None for _, why in found.storage.nodes)
        lines.append(f"storage {found.storage.path}: {'shared and writable' if right else 'not in order'}")
    return ["", *lines] if lines else []
