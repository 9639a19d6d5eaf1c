"""``orchestrator replay RUN --step N``: runs a stretch of a run again and compares its numbers.

The status is 0 where all numbers that both have are equal, 1 where some are not, and 2 where the run cannot
be started again or nothing can be compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.replay import Replayed

SUMMARY = "run a stretch of a run again, from its last checkpoint, and compare what it logged"

MOST_LINES = 20
"""Numbers that differ, and are shown, at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run and ``--step``."""
    parser.add_argument("run", type=Path, help="a version directory, like lightning_logs/version_0")
    parser.add_argument(
        "--step", type=int, required=True, help="the last step to run again, as in its curves"
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay, print what was found, and return the status."""
    from orchestrator.errors import MisconfigurationError
    from orchestrator.replay import replay

    try:
        if arguments.step < 0:
            raise MisconfigurationError(f"--step={arguments.step} is no step. Use 0 or more.")
        found = replay(arguments.run.absolute(), arguments.step)
    except MisconfigurationError as error:
        print(f"orchestrator replay: {error}", file=sys.stderr)
        return 2
    print(describe(found, arguments.step))
    if not found.found:
        return 2
    return 0 if all(item.equal for item in found.found) else 1


def describe(replayed: Replayed, step: int) -> str:
    """Return what was found, in lines: the first number that differs comes first."""
    began = "the run's beginning" if replayed.ckpt_path is None else replayed.ckpt_path
    lines = [f"Steps {replayed.first_step} to {step} were run again, from {began}."]
    differing = [item for item in replayed.found if not item.equal]
    if not replayed.found:
        lines.append(
            "The run has logged no number in them that the replay has logged too. Take a later step, or log "
            "more often: Trainer(log_every_n_steps=1)."
        )
    elif not differing:
        lines.append(f"All {len(replayed.found)} numbers that the run has logged in them are equal.")
    else:
        share = f"{len(differing)} of {len(replayed.found)} numbers differ"
        lines.append(f"{share}, the first at step {differing[0].step}:")
        lines += [
            f"  step {item.step}  {item.name}: {item.recorded!r} recorded, {item.replayed!r} replayed"
            for item in differing[:MOST_LINES]
        ]
    return "\n".join(lines)
