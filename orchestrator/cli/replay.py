"""``orchestrator replay RUN --step N``: runs a stretch of a run again and compares its numbers; with
``--bisect``, finds the samples that made a loss jump.

The status is 0 where all numbers that both have are equal, 1 where some are not, and 2 where the run cannot
be started again or nothing can be compared. With ``--bisect`` it is 0 where a sample was found, else 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.poison_search import Search
    from orchestrator.replay import Replayed

SUMMARY = "run a stretch of a run again, from its last checkpoint, and compare what it logged"

MOST_LINES = 20
"""Numbers that differ, and are shown, at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run and ``--step``."""
    parser.add_argument("run", type=Path, help="a version directory, like lightning_logs/version_0")
    parser.add_argument("--step", type=int, help="the last step to run again, as in its curves")
    parser.add_argument(
        "--bisect",
        action="store_true",
        help="find the samples that made a step's loss bad; without --step, the run's first bad one",
    )
    parser.add_argument(
        "--logical-rank", type=int, metavar="R", help="with --bisect: look at this rank's batches only"
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay, print what was found, and return the status."""
    from orchestrator.errors import MisconfigurationError
    from orchestrator.poison_search import search
    from orchestrator.replay import replay

    folder = arguments.run.absolute()
    try:
        refuse(arguments)
        if arguments.bisect:
            result = search(folder, arguments.step, arguments.logical_rank)
            print(describe_search(result))
            finding = result.finding
            return 0 if finding is not None and finding.size is not None and not finding.spoilt_before else 1
        found = replay(folder, arguments.step)
    except MisconfigurationError as error:
        print(f"orchestrator replay: {error}", file=sys.stderr)
        return 2
    print(describe(found, arguments.step))
    if not found.found:
        return 2
    return 0 if all(item.equal for item in found.found) else 1


def refuse(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        MisconfigurationError: They do not.
    """
    from orchestrator.errors import MisconfigurationError

    if arguments.step is None and not arguments.bisect:
        raise MisconfigurationError("no step is named. Write --step=N, or --bisect to look for a bad one.")
    for name in ("step", "logical_rank"):
        value = getattr(arguments, name)
        if value is not None and value < 0:
            option = name.replace("_", "-")
            raise MisconfigurationError(f"--{option}={value} is no {option}. Use 0 or more.")
    if arguments.logical_rank is not None and not arguments.bisect:
        raise MisconfigurationError("--logical-rank needs --bisect: what is compared is of all ranks.")


def describe_search(found: Search) -> str:
    """Return what a search has found, in lines."""
    lines = []
    if found.suspect is not None:
        lines.append(f"{found.suspect.name} is {found.suspect.value:.6g} at step {found.suspect.step}.")
    began = "the run's beginning" if found.ckpt_path is None else found.ckpt_path
    lines.append(f"Steps from {found.first_step} were run again, from {began}.")
    finding = found.finding
    if finding is None:
        lines.append(
            f"None of them up to {found.last_step} had a loss that jumps, or one or gradients that are not "
            "finite. Is the training deterministic? Trainer(deterministic=True) and a seed make it so."
        )
        return "\n".join(lines)
    usual = "" if finding.usual is None else f", {finding.usual:.6g} being usual"
    bad = f"the loss is {finding.value:.6g}{usual}"
    if finding.what == "gradients":
        bad = f"gradients are not finite, with a loss of {finding.value:.6g}"
    lines.append(
        f"Step {finding.step} (epoch {finding.epoch}, batch {finding.batch_idx}, rank {finding.rank}): {bad}."
    )
    if finding.size is None:
        lines.append("The samples of its batch cannot be told apart: no tensor in it has one a row.")
        return "\n".join(lines)
    places = ", ".join(map(str, finding.samples))
    one = len(finding.samples) == 1
    if finding.spoilt_before:
        lines.append(
            f"{len(finding.samples)} of {finding.size} samples are bad by themselves: the weights were "
            "spoilt before. Look at the step before it, or begin from an earlier checkpoint (save_top_k=-1)."
        )
        return "\n".join(lines)
    numbers = ", ".join(map(str, found.samples))
    named = f", number{'' if one else 's'} {numbers} of the data set" if numbers else ""
    its, it = ("its", "it") if one else ("their", "them")
    lines.append(f"To blame: sample{'' if one else 's'} {places} of the batch's {finding.size}{named}.")
    rest = "" if finding.rest is None else f"; without {it} the batch's is {finding.rest:.6g}"
    lines.append(f"Alone {its} loss is {finding.alone:.6g}{rest}.")
    return "\n".join(lines)


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
