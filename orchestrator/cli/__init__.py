"""The command line: ``orchestrator COMMAND``.

Each command is one file of this package with a one-line `SUMMARY`, `add_arguments` and `run`; a new one is
named in `_COMMANDS`. Files of commands import torch and Ray inside functions only, so that ``--help`` answers
at once. `main` returns the exit status: 0, or what the command returned; argparse itself exits with 2 after a
wrong argument.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Protocol

import orchestrator
from orchestrator.cli import info

__all__ = ["main"]


class Command(Protocol):
    """What the file of a command has."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit status."""


_COMMANDS: dict[str, Command] = {"info": info}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        argv: The arguments after the program's name; None takes them from `sys.argv`.
    """
    parser = argparse.ArgumentParser(
        prog="orchestrator", description="Train LightningModules on a laptop, in a sweep or on a Ray cluster."
    )
    parser.add_argument("--version", action="version", version=f"orchestrator {orchestrator.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.SUMMARY, description=command.SUMMARY))
    arguments = parser.parse_args(argv)
    return _COMMANDS[arguments.command].run(arguments)
