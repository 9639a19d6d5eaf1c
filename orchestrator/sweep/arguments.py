"""The arguments of a sweep, checked before anything starts, with Ray Tune's own objects taken in. Pure.

`TuneConfig` and `RunConfig` say the same things as arguments do; what is said twice must agree. Whatever
cannot work is a `MisconfigurationError` that names the argument.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.errors import MisconfigurationError, suggest

_DEFAULTS: dict[str, Any] = {"mode": "min", "num_samples": 1, "max_failures": 0}
_FROM_TUNE = (
    "metric",
    "mode",
    "num_samples",
    "scheduler",
    "search_alg",
    "max_concurrent_trials",
    "time_budget_s",
)
_FROM_RUN = ("name", "storage_path", "stop")
_NOT_TAKEN = {
    "reuse_actors": "a sweep always reuses its processes",
    "trial_name_creator": "trials are named by their numbers",
    "trial_dirname_creator": "trials are named by their numbers",
    "chdir_to_trial_dir": "trials run in the driver's working directory",
    "storage_filesystem": "a sweep is kept in a local or shared directory",
    "progress_reporter": "use verbose=False, and a callback of your own",
    "log_to_file": "use a logger in the Trainer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What a sweep was asked for, as one set.

    Attributes:
        metric, mode, num_samples, scheduler, search_alg, max_concurrent_trials, time_budget_s, name, stop,
            max_failures: As `Sweep` takes them.
        storage_path: Absolute.
        fail_fast: End the sweep with the first failed trial.
        callbacks: Ray Tune's, of the user.
        checkpoint_config: The user's, or None.
    """

    metric: str
    mode: str
    num_samples: int
    scheduler: Any
    search_alg: Any
    max_concurrent_trials: int | None
    time_budget_s: float | None
    name: str | None
    storage_path: str
    stop: Any
    max_failures: int
    fail_fast: bool
    callbacks: tuple[Any, ...]
    checkpoint_config: Any


def check_arguments(given: Mapping[str, Any], tune_config: Any, run_config: Any) -> Arguments:
    """Return the arguments of a sweep.

    Args:
        given: `Sweep`'s arguments by name.
        tune_config: A `ray.tune.TuneConfig`, or None.
        run_config: A `ray.tune.RunConfig`, or None.

    Raises:
        MisconfigurationError: One cannot work, or two say different things.
    """
    merged = {**given}
    for name in _FROM_TUNE:
        merged[name] = _agree(name, given, tune_config, "tune_config")
    for name in _FROM_RUN:
        merged[name] = _agree(name, given, run_config, "run_config")
    for config, kind in ((tune_config, "tune_config"), (run_config, "run_config")):
        _refuse_not_taken(config, kind)
    failure = getattr(run_config, "failure_config", None)
    failures = getattr(failure, "max_failures", 0)
    if failures and given["max_failures"] and failures != given["max_failures"]:
        raise _contradiction("max_failures", given["max_failures"], "run_config.failure_config", failures)
    merged["max_failures"] = given["max_failures"] or failures
    _check_values(merged)
    storage = os.fspath(merged["storage_path"] or "sweeps")
    if "://" in storage:
        raise MisconfigurationError(
            f"Sweep(storage_path={storage!r}) is an address. Use a directory that all nodes share."
        )
    return Arguments(
        **{name: merged[name] for name in (*_FROM_TUNE, "name", "stop", "max_failures")},
        storage_path=os.path.abspath(os.path.expanduser(storage)),
        fail_fast=bool(getattr(failure, "fail_fast", False)),
        callbacks=tuple(getattr(run_config, "callbacks", None) or ()),
        checkpoint_config=_checkpoint_config(run_config),
    )


def _agree(name: str, given: Mapping[str, Any], config: Any, kind: str) -> Any:
    """Return what an argument or a field of Ray's object says; refuse two that differ."""
    default = _DEFAULTS.get(name)
    said, other = given[name], getattr(config, name, None)
    if other is None or other in (default, getattr(type(config)(), name)):
        return said
    if said is None or said == default:
        return other
    if (os.fspath(said) if isinstance(said, os.PathLike) else said) != other:
        raise _contradiction(name, said, kind, other)
    return said


def _contradiction(name: str, said: Any, kind: str, other: Any) -> MisconfigurationError:
    return MisconfigurationError(
        f"Sweep({name}={said!r}) and {kind} with {name}={other!r} contradict each other. Leave one "
        "of them out."
    )


def _refuse_not_taken(config: Any, kind: str) -> None:
    for field in fields(config) if config is not None else ():
        value = getattr(config, field.name)
        if field.name in _NOT_TAKEN and value not in (None, False, field.default):
            raise MisconfigurationError(
                f"Sweep({kind}=...) has {field.name}={value!r}: {_NOT_TAKEN[field.name]}. Leave it out."
            )


def _checkpoint_config(run_config: Any) -> Any:
    """Return the user's checkpoint config where it says anything."""
    config = getattr(run_config, "checkpoint_config", None)
    return config if getattr(config, "num_to_keep", None) is not None else None


def _check_values(given: Mapping[str, Any]) -> None:
    metric, mode, samples = given["metric"], given["mode"], given["num_samples"]
    if not isinstance(metric, str) or not metric:
        raise MisconfigurationError(f"Sweep(metric={metric!r}). Name a metric that the module logs.")
    if mode not in ("min", "max"):
        raise MisconfigurationError(
            f"Sweep(mode={mode!r}) is unknown.{suggest(mode, ('min', 'max'))} Use 'min' or 'max'."
        )
    _check_count("num_samples", samples, 1)
    if given["max_concurrent_trials"] is not None:
        _check_count("max_concurrent_trials", given["max_concurrent_trials"], 1)
    _check_count("max_failures", given["max_failures"], -1)
    if given["seed"] is not None:
        _check_count("seed", given["seed"], 0)
    budget = given["time_budget_s"]
    budget = budget.total_seconds() if hasattr(budget, "total_seconds") else budget
    if budget is not None and (
        isinstance(budget, bool) or not isinstance(budget, (int, float)) or budget <= 0
    ):
        raise MisconfigurationError(f"Sweep(time_budget_s={budget!r}). Use a positive number of seconds.")
    name = given["name"]
    if name is not None and (not isinstance(name, str) or not name or os.sep in name or name in (".", "..")):
        raise MisconfigurationError(
            f"Sweep(name={name!r}) is no name of a directory. Use one without {os.sep!r}; "
            "storage_path says where."
        )


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MisconfigurationError(f"Sweep({name}={value!r}). Use a whole number of at least {least}.")
