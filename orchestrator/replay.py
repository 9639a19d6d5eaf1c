"""Runs a stretch of a recorded run again, from its last checkpoint before it, and compares what it logged.

The run's own program is started again, its script or the configuration of the command line, up to its first
``fit``. That one is changed in four ways: it begins at the checkpoint, ends behind the step that is asked
for, writes its numbers into memory and everything else into a temporary folder. The program's lines behind
it do not run. It runs on as many ranks as the run did, but under ``strategy="elastic"``, whose numbers do not
depend on that, in this process. Where training is deterministic the numbers are equal to the last digit;
TensorBoard's files hold 32-bit numbers, so these are compared as such. The run's files are only read.

It fails with `MisconfigurationError` where the run cannot be started again: no record, no script, a program
that never calls fit.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import struct
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from modules.checkpoint import CheckpointError, read
from orchestrator.arguments import saves_checkpoints
from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers.logger import Logger
from orchestrator.logical_ranks import logical_ranks_of
from orchestrator.profilers.profiler import PassThroughProfiler
from orchestrator.report.curves import read_curves
from orchestrator.run_files import read_run
from orchestrator.strategies.specs import ElasticStrategy
from orchestrator.trainer import Trainer
from orchestrator.trainer_calls import TrainerCalls


class Rows(Logger):
    """Keeps what is logged in memory, by name and step; it comes home from a group like any logger's."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}

    @property
    def name(self) -> str | None:
        """None."""
        return None

    @property
    def version(self) -> int | str | None:
        """None."""
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the values."""
        for name, value in metrics.items():
            self.values.setdefault(name, {})[0 if step is None else step] = float(value)

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace | None, metrics: Mapping[str, float] | float | None = None
    ) -> None:
        """Keep nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One number of the run beside the same number of its replay.

    Attributes:
        name: Of the metric.
        step: As loggers count it.
        recorded: The run's.
        replayed: The replay's.
        equal: They are one number, as precisely as it was recorded.
    """

    name: str
    step: int
    recorded: float
    replayed: float
    equal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of a replay.

    Attributes:
        ckpt_path: Where it began; None for the run's beginning.
        first_step: The first step that was run again, as loggers count it.
        found: The numbers that both have, by step.
    """

    ckpt_path: str | None
    first_step: int
    found: tuple[Comparison, ...]


class FitIsOver(BaseException):
    """Leaves the run's program behind its fit."""


def replay(folder: Path, step: int) -> Replayed:
    """Run the steps again that lead from the last checkpoint to `step`, and compare.

    Args:
        folder: The run's.
        step: The last step to run again, as loggers count it, from 0.

    Raises:
        MisconfigurationError: The run cannot be started again, or has ended before that step.
        Exception: Whatever the program raises.
    """
    content = read_run(folder)
    fits = [
        call for call in content["calls"] if call.get("fn") == "fit" and call.get("outcome") == "finished"
    ]
    made = max((int(call.get("steps", 0)) for call in fits), default=0)
    if fits and fits[-1] is content["calls"][-1] and step >= made:
        raise MisconfigurationError(f"{folder} has ended after {made} steps: the last one is {made - 1}.")
    path, first_step = last_checkpoint(folder, step)
    rows = Rows()
    with (
        tempfile.TemporaryDirectory(prefix="replay-") as scratch,
        changed_fit(rows, path, step, scratch),
        contextlib.suppress(FitIsOver),
    ):
        start_again(folder, content)
        raise MisconfigurationError(f"The program of {folder} has ended without a call of fit.")
    recorded = {name: dict(curve) for name, curve in read_curves(folder).items()}
    exact = (folder / "metrics.csv").is_file()
    found = compare(recorded, rows.values, first_step, step, exact=exact)
    return Replayed(ckpt_path=path, first_step=first_step, found=tuple(found))


def last_checkpoint(folder: Path, step: int) -> tuple[str | None, int]:
    """Return the run's last checkpoint before `step` was run, and the first step behind it; the beginning
    where there is none.
    """
    best: tuple[str | None, int] = (None, 0)
    for path in sorted((folder / "checkpoints").rglob("*.ckpt")):
        with contextlib.suppress(CheckpointError, OSError):
            content = read(path)
            own = content.get("orchestrator")
            if own is not None and best[1] < content["global_step"] <= step:
                best = (str(path), content["global_step"])
    return best


def compare(
    recorded: Mapping[str, Mapping[int, float]],
    replayed: Mapping[str, Mapping[int, float]],
    first: int,
    last: int,
    *,
    exact: bool,
) -> list[Comparison]:
    """Return the numbers that both have at steps from `first` to `last`, by step and name.

    Args:
        recorded: The run's, by name and step.
        replayed: The replay's.
        first: The first step.
        last: The last one.
        exact: Numbers were recorded with all digits; else as 32-bit numbers.
    """
    found = []
    for name in recorded.keys() & replayed.keys() - {"epoch"}:
        for step in recorded[name].keys() & replayed[name].keys():
            if first <= step <= last:
                one, other = recorded[name][step], replayed[name][step]
                equal = one == (other if exact else _single(other))
                item = Comparison(name=name, step=step, recorded=one, replayed=other, equal=equal)
                found.append(item)
    return sorted(found, key=lambda item: (item.step, item.name))


def _single(value: float) -> float:
    """Return the nearest 32-bit number."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


# ---------------------------------------------------------------- the program, again


def bring_into_this_process(trainer: Trainer) -> None:
    """Let a trainer run all logical ranks here, if it has such; of others nothing is changed."""
    settings, spec = trainer.settings, trainer.settings.strategy_spec
    if not isinstance(spec, ElasticStrategy) or trainer.plan.launched is not None:
        return
    ranks = logical_ranks_of(settings, trainer.plan.num_workers)
    spec = replace(spec, logical_ranks=ranks, min_workers=1, max_workers=None)
    trainer.settings = replace(settings, devices=1, num_nodes=1, spares=0, strategy_spec=spec)
    trainer._scaling_config = trainer._placement_group = None
    trainer.plan = trainer._make_plan(None)


def refuse_sharding(trainer: Trainer) -> None:
    """Refuse to look at single samples where no rank has whole weights.

    Raises:
        MisconfigurationError: The weights are dealt to the ranks.
    """
    if trainer.settings.strategy in ("fsdp", "deepspeed"):
        raise MisconfigurationError(
            f"Trainer(strategy={trainer.settings.strategy!r}) deals weights to ranks, so no rank can try "
            "parts of its batch alone. Replay the run without --bisect."
        )


def start_again(folder: Path, content: dict[str, Any]) -> None:
    """Start the run's program as it was started."""
    config = folder / "config.yaml"
    if config.is_file():
        from orchestrator.cli import main

        status = main(["fit", f"--config={config}"])
        raise MisconfigurationError(f"orchestrator fit --config={config} has ended with status {status}.")
    code = content.get("code", {})
    script = code.get("script")
    if script is None or not Path(script).is_file():
        raise MisconfigurationError(
            f"{folder} was recorded by {script or 'a program without a file'}, which is not there to be "
            "started again. Start the training from a script, or with `orchestrator fit`."
        )
    place = code.get("folder")
    with _as_program(script, code.get("arguments", [])), contextlib.ExitStack() as stack:
        if place is not None and os.path.isdir(place):
            stack.enter_context(contextlib.chdir(place))
        runpy.run_path(script, run_name="__main__")


@contextlib.contextmanager
def _as_program(script: str, arguments: list[str]) -> Iterator[None]:
    """Be, for a block, what Python is when it runs the script."""
    before, path = sys.argv, list(sys.path)
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(script))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before, path


@contextlib.contextmanager
def changed_fit(
    rows: Rows, ckpt_path: str | None, step: int, scratch: str, probe: Callback | None = None
) -> Iterator[None]:
    """Make every call of a trainer, for a block, the replay: fit of the stretch, and nothing behind it.

    Args:
        rows: Gets what is logged.
        ckpt_path: Where to begin; None for the beginning.
        step: The last step.
        scratch: The folder for everything that is written.
        probe: Looks on; then a ledger is kept too.
    """
    own_call = TrainerCalls._call

    def call(self: TrainerCalls, fn: str, model: Any, datamodule: Any, *_: Any, **loaders: Any) -> Any:
        if fn != "fit":
            raise MisconfigurationError(f"The run's program calls {fn} before fit, which cannot be replayed.")
        trainer = cast(Trainer, self)
        trainer.settings = replace(
            trainer.settings,
            max_steps=step + 1,
            default_root_dir=scratch,
            resume=None,
            ledger=probe is not None,
        )
        trainer.loggers, trainer.profiler = [rows], PassThroughProfiler()
        trainer.callbacks = [item for item in trainer.callbacks if not saves_checkpoints(item)]
        if probe is not None:
            refuse_sharding(trainer)
            trainer.callbacks.append(probe)
            trainer.settings = replace(trainer.settings, compile=None)
        bring_into_this_process(trainer)
        own_call(trainer, "fit", model, datamodule, ckpt_path, None, **loaders)
        rows.values = cast(Rows, trainer.loggers[0]).values
        raise FitIsOver

    TrainerCalls._call = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainerCalls._call = own_call  # type: ignore[method-assign]
