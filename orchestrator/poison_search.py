"""Looks for the poisoned sample of a recorded run: where its numbers went wrong, and which samples did it.

The run is started again, as by `orchestrator.replay`, from the last checkpoint before its first number that
is not finite, or its farthest jump, with a `Probe` looking on. It ends at the first step that is bad. The
numbers of the samples in their data set come from a ledger that is kept meanwhile. The run's files are only
read. It fails as a replay does, and where no number of the run is bad and no step is named.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import MisconfigurationError
from orchestrator.ledger_audit import FOLDER as LEDGER
from orchestrator.poison import LOOKS_BACK, Finding, PoisonFound, Probe, jumps
from orchestrator.replay import FitIsOver, Rows, changed_fit, last_checkpoint, start_again
from orchestrator.report.curves import Curve, read_curves
from orchestrator.run_files import read_run

_FEW = 10
_LOG_EVERY = 50
"""Trainer(log_every_n_steps=...) where the record says nothing of it: the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A number of a run that is not as it should be.

    Attributes:
        name: Of the metric.
        step: As loggers count it.
        value: The number.
    """

    name: str
    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What came of a search.

    Attributes:
        suspect: What was looked for; None where a step was named.
        ckpt_path: Where it began; None for the run's beginning.
        first_step: The first step that was run again.
        last_step: The last one that would have been.
        finding: What was found; None for nothing.
        samples: The numbers in the data set of the samples to blame; empty where they have none.
    """

    suspect: Suspect | None
    ckpt_path: str | None
    first_step: int
    last_step: int
    finding: Finding | None
    samples: tuple[int, ...]


def search(folder: Path, step: int | None = None, rank: int | None = None) -> Search:
    """Run the stretch up to the bad step again, and find the samples to blame.

    Args:
        folder: The run's.
        step: The step to look up to, as loggers count it; None finds it.
        rank: The rank, or logical rank, whose batches are looked at; None for all.

    Raises:
        MisconfigurationError: The run cannot be started again, or has no bad number and no step is named.
        Exception: Whatever the program raises.
    """
    content = read_run(folder)
    every = int(content.get("arguments", {}).get("log_every_n_steps") or _LOG_EVERY)
    curves = read_curves(folder, finite=False)
    suspect = find_suspect(curves) if step is None else None
    if step is None and suspect is None:
        raise MisconfigurationError(
            f"No loss that {folder} has logged is other than finite, or jumps. Name a step up to which to "
            "look on every rank: --step=N."
        )
    last = suspect.step if suspect is not None else step or 0
    first = last if suspect is None else max(0, last - every + 1)
    path, first_step = last_checkpoint(folder, first)
    name = suspect.name if suspect is not None else next(iter(_losses(curves)), "")
    known = [value for at, value in curves.get(name, []) if at < first_step][-LOOKS_BACK:]
    probe = Probe(known, first=first_step, named=step, rank=rank)
    finding: Finding | None = None
    samples: tuple[int, ...] = ()
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        try:
            with changed_fit(Rows(), path, last, scratch, probe), contextlib.suppress(FitIsOver):
                start_again(folder, content)
        except PoisonFound as found:
            finding = found.finding
            samples = sample_numbers(Path(scratch), finding)
    return Search(
        suspect=suspect,
        ckpt_path=path,
        first_step=first_step,
        last_step=last,
        finding=finding,
        samples=samples,
    )


def find_suspect(curves: Mapping[str, Curve]) -> Suspect | None:
    """Return the first training loss that is not finite, or else the one that jumps farthest; None for none.

    Losses are the curves that have the word in their names; those of validation and test are left out.

    >>> find_suspect({"loss": [(9, 1.0), (19, 1.1), (29, 0.9), (39, 8.0)]})
    Suspect(name='loss', step=39, value=8.0)
    """
    losses = _losses(curves)
    broken = [
        Suspect(name=name, step=step, value=value)
        for name, curve in losses.items()
        for step, value in curve
        if not math.isfinite(value)
    ]
    if broken:
        return min(broken, key=lambda item: item.step)
    return _farthest(losses, after=0) or _farthest(losses, after=_FEW)  # at first, what came after is usual


def _farthest(losses: Mapping[str, Curve], after: int) -> Suspect | None:
    """Return the number that jumps farthest beside those before it and, where few are, so many after."""
    farthest: tuple[float, Suspect | None] = (0.0, None)
    for name, curve in losses.items():
        for place, (step, value) in enumerate(curve):
            others = [item for _, item in curve[max(0, place - LOOKS_BACK) : place]]
            if len(others) < _FEW:
                others += [item for _, item in curve[place + 1 : place + 1 + after]]
            if jumps(value, others):
                distance = value / max(1e-12, abs(statistics.median(others)))
                if distance > farthest[0]:
                    farthest = distance, Suspect(name=name, step=step, value=value)
    return farthest[1]


def _losses(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {
        name: curve
        for name, curve in curves.items()
        if "loss" in name.lower() and not name.lower().startswith(("val", "test"))
    }


def sample_numbers(root: Path, finding: Finding) -> tuple[int, ...]:
    """Return the numbers in the data set of the samples that were found, from the ledger below `root`;
    nothing where it does not have them.
    """
    wanted = (finding.epoch, finding.batch_idx, finding.rank)
    for path in (root / LEDGER).glob("*.jsonl"):
        own = None
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                own = line.get("rank", own)  # says whose file it is; a line may say whose batch
                if (line.get("e"), line.get("b"), line.get("r", own)) == wanted:
                    numbers = line["ids"]
                    if len(numbers) == finding.size:
                        return tuple(numbers[place] for place in finding.samples)
    return ()
