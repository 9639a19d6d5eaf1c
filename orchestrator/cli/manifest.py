"""``orchestrator manifest kuberay|slurm|ray-up``: writes the file with which a cluster is asked for, or
checks one.

The file goes to standard output, or to ``--output``, which is never replaced in silence. Files are checked
strictly, those that are written here too: an unknown field, or a missing one, is an error with its place, and
the exit status is 2.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
from pathlib import Path

from cluster.errors import SpecError
from cluster.manifests import kuberay, ray_up, slurm
from cluster.manifests.request import ClusterRequest

SUMMARY = "write or check the file with which a cluster is asked for"

_KINDS = {
    "kuberay": (kuberay, "a RayJob for Kubernetes with KubeRay"),
    "slurm": (slurm, "a batch script for Slurm"),
    "ray-up": (ray_up, "a cluster file for `ray up`"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the kinds, and what is asked for."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, (_, summary) in _KINDS.items():
        made = kinds.add_parser(kind, help=summary, description=f"Write {summary}, or check one.")
        made.add_argument("--check", type=Path, metavar="FILE", help="check this file instead of writing one")
        made.add_argument("--output", type=Path, metavar="FILE", help="write here, not to standard output")
        made.add_argument("--force", action="store_true", help="replace a file that is there")
        made.add_argument("--name", default="train", help="of job and cluster (train)")
        made.add_argument("--workers", type=int, default=1, metavar="N", help="nodes that train (1)")
        made.add_argument("--cpus", type=int, default=4, metavar="N", help="of each (4)")
        made.add_argument("--gpus", type=int, default=0, metavar="N", help="of each (0)")
        made.add_argument("--memory", type=int, default=16, metavar="GIB", help="of each (16)")
        if kind != "slurm":
            made.add_argument("--image", default="CHANGE_ME_IMAGE", help="with orchestrator and your code")
        if kind == "slurm":
            made.add_argument("--time", default="24:00:00", help="the longest it may take (24:00:00)")
        if kind == "ray-up":
            made.add_argument(
                "--provider", choices=ray_up.PROVIDERS, default="local", help="whose machines (local)"
            )
        made.add_argument("entrypoint", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")


def run(arguments: argparse.Namespace) -> int:
    """Write or check, and return the exit status."""
    try:
        return _check(arguments) if arguments.check is not None else _write(arguments)
    except (SpecError, OSError) as error:
        print(f"orchestrator manifest: {error}", file=sys.stderr)
        return 2


def _write(arguments: argparse.Namespace) -> int:
    words = arguments.entrypoint[1:] if arguments.entrypoint[:1] == ["--"] else arguments.entrypoint
    request = ClusterRequest(
        name=arguments.name,
        workers=arguments.workers,
        cpus=arguments.cpus,
        gpus=arguments.gpus,
        memory_gib=arguments.memory,
        image=getattr(arguments, "image", ""),
        time=getattr(arguments, "time", "24:00:00"),
        provider=getattr(arguments, "provider", "local"),
        entrypoint=shlex.join(words),
        ray_version=importlib.metadata.version("ray"),
    )
    text = _KINDS[arguments.kind][0].write(request)
    if arguments.output is None:
        print(text, end="")
    elif arguments.output.exists() and not arguments.force:
        raise SpecError(f"--output={arguments.output} is there already. Name another file, or add --force.")
    else:
        arguments.output.write_text(text, encoding="utf-8")
        print(f"{arguments.output} is written.")
    left = sorted({word.strip("\"',") for word in text.split() if "CHANGE_ME" in word})
    if left:
        print(f"Still to be filled in: {', '.join(left)}.", file=sys.stderr)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    text = arguments.check.read_text(encoding="utf-8")
    found = _KINDS[arguments.kind][0].check(text)
    if "CHANGE_ME" in text:
        found.append("something is still to be filled in: CHANGE_ME.")
    for problem in found:
        print(f"{arguments.check}: {problem}", file=sys.stderr)
    if not found:
        print(f"{arguments.check} is right, as far as its fields go.")
    return 2 if found else 0
