"""``orchestrator submit -- python train.py ...``: runs a command on a Ray cluster, with the code of this
folder.

The job server is asked first; then the code is listed, its largest files are named, and what is too large is
refused with the list. The job's log is followed until it ends, and its end is this command's: 0 when it
succeeded, else 1. Ctrl-C leaves the job running and says how to follow or stop it. The job attaches to
the cluster by itself, so the script is the one that runs on a laptop.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path

from cluster import code_package, jobs
from cluster.errors import JobError

SUMMARY = "run a command on a Ray cluster, with the code of this folder"
_MIB = 2**20


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB" if size_bytes >= _MIB / 10 else f"{size_bytes / 1024:.1f} KiB"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is sent, where to, and the command."""
    add_address(parser)
    parser.add_argument("--working-dir", type=Path, default=Path("."), help="the folder of the code (here)")
    parser.add_argument("--exclude", action="append", default=[], metavar="NAME", help="leave this out too")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the job"
    )
    parser.add_argument(
        "--pip", action="append", default=[], metavar="PACKAGE", help="install this for the job"
    )
    parser.add_argument("--name", help="the job's name")
    parser.add_argument("--cpus", type=float, default=0, help="CPUs that the command itself reserves (0)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs that the command itself reserves (0)")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the log")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    parser.add_argument("entrypoint", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")


def add_address(parser: argparse.ArgumentParser) -> None:
    """Declare ``--address``."""
    parser.add_argument(
        "--address",
        metavar="URL",
        help=f"the job server (RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else {jobs.DEFAULT_ADDRESS})",
    )


def connect(address: str | None) -> jobs.JobServer:
    """Return the job server that the command line and the environment name."""
    return jobs.JobServer(jobs.find_address(address, os.environ), jobs.find_token(os.environ))


def run(arguments: argparse.Namespace) -> int:
    """Send, start, follow; return the exit status."""
    try:
        request = parse(arguments)
        server = None if arguments.dry_run else connect(arguments.address)
        package = code_package.collect(arguments.working_dir.resolve(), arguments.exclude)
        print(describe(package))
        if server is None:
            return 0
        name, data = package.archive()
        refuse_too_large(package, len(data))
        if not server.has_package(name):
            print(f"Sending {_size(len(data))} to {server.address}.")
            server.upload(name, data)
        job = server.submit(dataclasses.replace(request, package=name))
    except JobError as error:
        print(f"orchestrator submit: {error}", file=sys.stderr)
        return 2
    print(f"Job {job} is submitted. `orchestrator jobs stop {job}` stops it.", flush=True)
    return 0 if arguments.no_wait else follow(server, job)


def parse(arguments: argparse.Namespace) -> jobs.JobRequest:
    """Return the job that is asked for, as yet without its code.

    Raises:
        JobError: There is no command, or a variable without a value.
    """
    words = arguments.entrypoint[1:] if arguments.entrypoint[:1] == ["--"] else arguments.entrypoint
    if not words:
        raise JobError("There is no command to run. Write it last: orchestrator submit -- python train.py")
    wrong = [item for item in arguments.env if not item.partition("=")[0] or "=" not in item]
    if wrong:
        raise JobError(f"--env={wrong[0]} gives no value. Write --env NAME=VALUE.")
    return jobs.JobRequest(
        entrypoint=shlex.join(words),
        env_vars={name: value for name, _, value in (item.partition("=") for item in arguments.env)},
        pip=tuple(arguments.pip),
        id=arguments.name,
        cpus=arguments.cpus,
        gpus=arguments.gpus,
    )


def describe(package: code_package.CodePackage) -> str:
    """Return what is sent: how much, and the largest files."""
    lines = [f"{len(package.files)} files, {_size(package.size_bytes)}, of {package.root}. The largest:"]
    lines += [f"  {_size(size):>10}  {name}" for name, size in package.largest()]
    return "\n".join(lines)


def refuse_too_large(package: code_package.CodePackage, size_bytes: int) -> None:
    """Raise `JobError` for an archive of more bytes than a job server takes."""
    if size_bytes > jobs.MAX_UPLOAD_BYTES:
        largest = ", ".join(f"{name} ({size / _MIB:.0f} MiB)" for name, size in package.largest())
        raise JobError(
            f"The code is {size_bytes / _MIB:.0f} MiB as an archive, and a job server takes "
            f"{jobs.MAX_UPLOAD_BYTES / _MIB:.0f}. The largest files: {largest}. Leave them out with "
            "--exclude, and put data where the cluster reads it."
        )


def follow(server: jobs.JobServer, job: str) -> int:
    """Print a job's log until it ends; return 0 if it succeeded, 130 after Ctrl-C, else 1."""
    try:
        for text in server.follow(job):
            print(text, end="", flush=True)
        ended = server.job(job)
    except KeyboardInterrupt:
        print(
            f"\nJob {job} goes on. `orchestrator jobs logs {job}` follows it, `orchestrator jobs stop {job}` "
            "stops it.",
            file=sys.stderr,
        )
        return 130
    except JobError as error:
        print(f"orchestrator: the log is lost, and job {job} may go on: {error}", file=sys.stderr)
        return 1
    if ended.status == "SUCCEEDED":
        return 0
    reason = ended.message.strip().splitlines()
    print(f"Job {job}: {ended.status}. {reason[0] if reason else ''}", file=sys.stderr)
    return 1
