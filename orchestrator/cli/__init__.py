"""The command line: ``orchestrator COMMAND``, and `LightningCLI` for a script's own.

Each command is one file of this package with a one-line `SUMMARY`, `add_arguments` and `run`; a new one is
named in `_COMMANDS`. Those that train are `training`'s: their arguments come from the classes that they
train, so they are read only once one of them is asked for. Files of commands import torch and Ray inside
functions only, so that ``orchestrator`` alone and ``--help`` answer at once. `main` returns the exit status:
0, or what the command returned; argparse itself exits with 2 after a wrong argument.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import orchestrator
from orchestrator.cli import (
    audit,
    doctor,
    info,
    jobs,
    manifest,
    replay,
    report,
    runs,
    submit,
    sweep,
    trace,
    training,
)
from orchestrator.errors import suggest

if TYPE_CHECKING:
    from orchestrator.cli.lightning_cli import ArgsType as ArgsType
    from orchestrator.cli.lightning_cli import LightningCLI as LightningCLI
    from orchestrator.cli.optimizer_arguments import LRSchedulerCallable as LRSchedulerCallable
    from orchestrator.cli.optimizer_arguments import OptimizerCallable as OptimizerCallable
    from orchestrator.cli.optimizer_arguments import ReduceLROnPlateau as ReduceLROnPlateau
    from orchestrator.cli.optimizer_arguments import instantiate_class as instantiate_class
    from orchestrator.cli.parser import LightningArgumentParser as LightningArgumentParser
    from orchestrator.cli.save_config import SaveConfigCallback as SaveConfigCallback

__all__ = [
    "ArgsType",
    "LRSchedulerCallable",
    "LightningArgumentParser",
    "LightningCLI",
    "OptimizerCallable",
    "ReduceLROnPlateau",
    "SaveConfigCallback",
    "instantiate_class",
    "main",
]

_FILES = {
    "ArgsType": "lightning_cli",
    "LRSchedulerCallable": "optimizer_arguments",
    "LightningArgumentParser": "parser",
    "LightningCLI": "lightning_cli",
    "OptimizerCallable": "optimizer_arguments",
    "ReduceLROnPlateau": "optimizer_arguments",
    "SaveConfigCallback": "save_config",
    "instantiate_class": "optimizer_arguments",
}


class Command(Protocol):
    """What the file of a command has."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit status."""


_COMMANDS: dict[str, Command] = {
    "sweep": sweep,
    "runs": runs,
    "report": report,
    "replay": replay,
    "trace": trace,
    "audit": audit,
    "submit": submit,
    "jobs": jobs,
    "manifest": manifest,
    "doctor": doctor,
    "info": info,
}

_WRONG_WORD = re.compile(
    r"argument (?P<what>[A-Z]+): invalid choice: '(?P<word>.*)' \(choose from (?P<choices>.*)\)"
)


class _Parser(argparse.ArgumentParser):
    """Says which command was probably meant."""

    def error(self, message: str) -> Any:
        """End with status 2; after a wrong command, or a wrong kind of one, name the nearest, or all."""
        wrong = _WRONG_WORD.fullmatch(message)
        if wrong is not None:
            what, word, choices = wrong["what"].lower(), wrong["word"], wrong["choices"].replace("'", "")
            hint = suggest(word, choices.split(", ")) or f" There are {choices}."
            message = f"there is no {what} {word!r}.{hint}"
        super().error(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        argv: The arguments after the program's name; None takes them from `sys.argv`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in training.SUMMARIES:
        return training.run(argv)
    parser = _Parser(
        prog="orchestrator", description="Train LightningModules on a laptop, in a sweep or on a Ray cluster."
    )
    parser.add_argument("--version", action="version", version=f"orchestrator {orchestrator.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in training.SUMMARIES.items():
        subparsers.add_parser(name, help=summary, add_help=False)
    for name, command in _COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.SUMMARY, description=command.SUMMARY))
    if not argv:
        parser.print_help()
        return 0
    arguments = parser.parse_args(argv)
    return _COMMANDS[arguments.command].run(arguments)


def __getattr__(name: str) -> Any:
    file = _FILES.get(name)
    if file is None:
        raise AttributeError(
            f"module 'orchestrator.cli' has no attribute {name!r}. Public names: {', '.join(__all__)}."
        )
    return getattr(importlib.import_module(f"orchestrator.cli.{file}"), name)
