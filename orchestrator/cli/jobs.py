"""``orchestrator jobs list|status|logs|stop``: what runs on a cluster, and how to end it.

Nothing is changed but by ``stop``, which asks the job to end and does not wait for it. A cluster or a job
that does not answer is one line on standard error and status 2.
"""

from __future__ import annotations

import argparse
import sys
import time

from cluster.errors import JobError
from cluster.jobs import Job
from orchestrator.cli import submit

SUMMARY = "list, follow and stop the jobs of a Ray cluster"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the four actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in {
        "list": "list all jobs",
        "status": "tell how a job stands",
        "logs": "print a job's log, and follow it until the job ends",
        "stop": "stop a job",
    }.items():
        action = actions.add_parser(name, help=summary, description=summary)
        submit.add_address(action)
        if name != "list":
            action.add_argument("job", help="its name, as `orchestrator jobs list` shows it")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit status."""
    try:
        server = submit.connect(arguments.address)
        if arguments.action == "list":
            print(format_jobs(server.jobs(), time.time()))
        elif arguments.action == "status":
            job = server.job(arguments.job)
            print(f"{job.status}  {job.entrypoint}\n{job.message}".rstrip())
        elif arguments.action == "logs":
            return submit.follow(server, server.job(arguments.job).id)
        else:
            stopped = server.stop(arguments.job)
            print(f"Job {arguments.job} is being stopped." if stopped else f"Job {arguments.job} had ended.")
    except JobError as error:
        print(f"orchestrator jobs: {error}", file=sys.stderr)
        return 2
    return 0


def format_jobs(jobs: list[Job], now: float) -> str:
    """Return one line a job: status, minutes, name, command."""
    if not jobs:
        return "No jobs."
    lines = []
    for job in jobs:
        seconds = (job.end_time or now) - job.start_time if job.start_time else 0
        lines.append(f"{job.status:<9}  {seconds / 60:6.1f} min  {job.id}  {job.entrypoint}")
    return "\n".join(lines)
