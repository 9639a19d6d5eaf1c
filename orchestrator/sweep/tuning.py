"""Runs a sweep's trials through Ray Tune, begun anew or taken up again, and leaves the process as it was.

Tune's own tables and doubled error reports are kept quiet, its signal handlers are taken off again, and a
Ctrl-C that Tune has swallowed is raised here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback

from orchestrator.sweep.arguments import Arguments
from orchestrator.sweep.directory import Claim
from orchestrator.sweep.following import Follower
from orchestrator.sweep.numbering import Numbering
from orchestrator.sweep.quick_start import quick_start

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # tables that name directories which are gone afterwards
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the sweep adds those that it needs
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run_trials(
    trainable: type,
    job: object,
    space: dict[str, Any],
    arguments: Arguments,
    claim: Claim,
    follower: Follower,
    *,
    generator: Any,
    scheduler: Any,
    saves: bool,
    first_number: int,
) -> Any:
    """Run all trials and return Ray Tune's `ResultGrid`.

    Args:
        trainable: What Tune runs trials with.
        job: What all trials have in common: the argument ``job`` of each trainable.
        space: The search space.
        arguments: The sweep's.
        claim: Its directory, and whether it goes on there.
        follower: Told of everything that happens.
        generator: Proposes configurations.
        scheduler: Stops trials; None for none.
        saves: Trials make checkpoints at their reports.
        first_number: Of the next new trial.

    Raises:
        KeyboardInterrupt: The user has interrupted; what was done is kept.
    """
    numbering = Numbering(first_number)
    tune_config = tune.TuneConfig(
        metric=arguments.metric,
        mode=arguments.mode,
        num_samples=arguments.num_samples,
        scheduler=scheduler,
        search_alg=generator,
        time_budget_s=arguments.time_budget_s,
        reuse_actors=True,
        trial_name_creator=numbering,
        trial_dirname_creator=numbering,
    )
    checkpoint_config = arguments.checkpoint_config or tune.CheckpointConfig(
        num_to_keep=checkpoints_to_keep(scheduler) if saves else None,
        checkpoint_score_attribute=arguments.metric if saves else None,
        checkpoint_score_order=arguments.mode,
    )
    run_config = tune.RunConfig(
        name=claim.name,
        storage_path=os.path.dirname(claim.path),
        verbose=0,
        stop=arguments.stop,
        failure_config=tune.FailureConfig(max_failures=arguments.max_failures, fail_fast=arguments.fail_fast),
        callbacks=[JsonLoggerCallback(), CSVLoggerCallback(), *arguments.callbacks, follower],
        checkpoint_config=checkpoint_config,
    )
    checkpoint_config.checkpoint_at_end = False  # there is nothing left to save by then
    with _quiet(), quick_start(job), _signals_kept() as was_interrupted:
        if claim.goes_on and tune.Tuner.can_restore(claim.path) and _has_snapshot(claim.path):
            tuner = tune.Tuner.restore(
                claim.path, trainable, param_space=space, resume_unfinished=True, restart_errored=True
            )
            inner: Any = tuner._local_tuner  # the objects of this run, rather than those of the run before
            inner._tune_config, inner._run_config = tune_config, run_config
        else:
            tuner = tune.Tuner(trainable, param_space=space, tune_config=tune_config, run_config=run_config)
        grid = tuner.fit()
        interrupted = was_interrupted()
    if interrupted:
        raise KeyboardInterrupt(
            f"The sweep in {claim.path} was interrupted. Started again with "
            f"Sweep(name={claim.name!r}), it goes on."
        )
    return grid


def checkpoints_to_keep(scheduler: Any) -> int:
    """Return how many checkpoints a trial keeps, besides its last.

    Population based training lets a trial go on from another's checkpoint some reports later, so it must not
    be gone by then.
    """
    interval = getattr(scheduler, "_perturbation_interval", None)
    if interval is None:
        return 1
    by_reports = getattr(scheduler, "_time_attr", "") == "training_iteration"
    return 2 * int(interval) + 2 if by_reports else 10


def _has_snapshot(path: str) -> bool:
    """Return whether Tune has had the time to write down which trials there are."""
    return any(name.startswith("experiment_state-") for name in os.listdir(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Tune from printing tables and one failure several times; put everything back afterwards."""
    added = {name: value for name, value in _QUIET.items() if name not in os.environ}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "optuna")]
    levels = [logger.level for logger in loggers]
    os.environ.update(added)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _signals_kept() -> Iterator[Callable[[], bool]]:
    """Put the signal handlers back afterwards; yields whether a SIGINT has come.

    Tune takes SIGINT for itself, and gives it back when one comes, so that a second one ends the program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    taken = os.environ.get("TUNE_DISABLE_SIGINT_HANDLER", "0") == "0"
    try:
        yield lambda: taken and signal.getsignal(signal.SIGINT) is kept[signal.SIGINT]
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
