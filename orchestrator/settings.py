"""Every argument of the Trainer, checked: types, ranges and combinations, before anything starts.

A `Settings` is frozen and plain, so it travels to workers as it is. Each error names the argument as the
user wrote it, the value, and what to write instead.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from orchestrator.compile import parse_compile
from orchestrator.duration import parse_duration
from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.hardware import parse_accelerator, parse_devices
from orchestrator.precision import parse_precision
from orchestrator.strategies.names import parse_strategy
from orchestrator.strategies.specs import Spec, timeout_s

DEFAULT_MAX_FAILURES = 3
DEFAULT_MAX_EPOCHS = 1000
"""Epochs of a fit for which neither epochs nor steps were given."""
_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The Trainer's arguments, as `Trainer` documents them.

    Attributes:
        strategy: auto, single, ddp, fsdp or deepspeed.
        strategy_spec: What the strategy's name or instance says in detail; None for auto.
        strategy_note: What the plan adds about a name that means something else in Lightning.
        devices: A number, ``"auto"``, or the numbers of GPUs.
        compile: Keyword arguments of ``torch.compile``; None compiles nothing.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    strategy_spec: Spec | None = None
    strategy_note: str = ""
    devices: int | str | tuple[int, ...] = "auto"
    num_nodes: int = 1
    precision: str = "32-true"
    fast_dev_run: int = 0
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: timedelta | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    val_check_interval: int | float | timedelta = 1.0
    check_val_every_n_epoch: int | None = 1
    reload_dataloaders_every_n_epochs: int = 0
    num_sanity_val_steps: int = 2
    log_every_n_steps: int = 50
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    pad_uneven: bool = False
    join_uneven: bool = False
    enable_checkpointing: bool = True
    enable_progress_bar: bool = True
    enable_model_summary: bool = True
    enable_autolog_hparams: bool = True
    barebones: bool = False
    default_root_dir: str = "."
    resources_per_worker: tuple[tuple[str, float], ...] | None = None
    threads_per_worker: int | None = None
    spares: int = 0
    max_failures: int = DEFAULT_MAX_FAILURES
    replacement_timeout_s: float = 300.0
    start_timeout_s: float = 60.0
    collective_timeout_s: float = 1800.0
    autopsy_after_s: float | None = 10.0
    sync_batchnorm: bool = False
    deterministic: bool | str = False
    benchmark: bool | None = None
    detect_anomaly: bool = False
    compile: dict[str, Any] | None = None
    resume: str | None = None
    ledger: bool = False

    @classmethod
    def create(cls, **given: Any) -> Settings:
        """Check the arguments as the user gave them, fill in what follows from them, and return them.

        Raises:
            MisconfigurationError: The first argument or combination that cannot work.
        """
        values = dict(given)
        _check_switch("barebones", values["barebones"])
        if values["barebones"]:
            values.update(_what_barebones_sets(values))
        values["accelerator"] = parse_accelerator(values["accelerator"])
        values["strategy"], values["strategy_spec"], values["strategy_note"] = parse_strategy(
            values["strategy"]
        )
        values["devices"] = parse_devices(values["devices"], values["accelerator"])
        values["precision"] = parse_precision(
            "32-true" if values["precision"] is None else values["precision"]
        )
        values["deterministic"] = _deterministic(values["deterministic"])
        values["compile"] = parse_compile(values["compile"])
        if values["resume"] not in (None, "auto"):
            raise MisconfigurationError(
                f"Trainer(resume={values['resume']!r}). Use 'auto' or None; a certain checkpoint is given to "
                "fit(ckpt_path=...)."
            )
        for name, least, optional in _WHOLE_NUMBERS:
            values[name] = _whole(name, values[name], least, optional)
        if values["min_steps"] is not None and values["min_epochs"] is None:
            values["min_epochs"] = 1  # Lightning's: who asks for steps gets a whole epoch
        values["max_time"] = parse_duration("Trainer(max_time=", values["max_time"])
        for kind in ("epochs", "steps"):
            _check_least(kind, given[f"min_{kind}"], values[f"max_{kind}"])
        for name in _LIMITS:
            values[name] = _limit(name, values[name])
        values["overfit_batches"] = _limit("overfit_batches", values["overfit_batches"]) or 0.0
        if values["overfit_batches"]:
            values.update(dict.fromkeys(_LIMITS[:2], values["overfit_batches"]))
        values["fast_dev_run"] = _fast_dev_run(values["fast_dev_run"])
        values["val_check_interval"] = _check_interval(values["val_check_interval"])
        for name, default in _DEFAULTS.items():
            values[name] = default if values[name] is None else values[name]
        _check_clipping(values["gradient_clip_val"], values["gradient_clip_algorithm"])
        for name in ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
            values[name] = True if values[name] is None else values[name]
        for name in _SWITCHES:
            _check_switch(name, values[name])
        _check_validation(values["check_val_every_n_epoch"], values["val_check_interval"])
        values["default_root_dir"] = _root(values["default_root_dir"])
        values["resources_per_worker"] = _resources(values["resources_per_worker"])
        if values["max_failures"] is None:
            values["max_failures"] = DEFAULT_MAX_FAILURES
        for name in ("start_timeout_s", "collective_timeout_s", "replacement_timeout_s"):
            _check_seconds(name, values[name])
        _check_seconds("autopsy_after_s", values["autopsy_after_s"], optional=True)
        values["collective_timeout_s"] = timeout_s(values["strategy_spec"]) or values["collective_timeout_s"]
        if values["benchmark"] is not None:
            _check_switch("benchmark", values["benchmark"])
        if values["fast_dev_run"]:
            values.update(_what_fast_dev_run_sets(values["fast_dev_run"]))
        return cls(**values)

    def adjusted(self, name: str, value: Any) -> Settings:
        """Return the settings with one argument as ``trainer.name = value`` sets it, checked likewise.

        Raises:
            MisconfigurationError: It cannot be that, by itself or beside the others.
        """
        try:
            if name in _LIMITS:
                value = _limit(name, value)
            elif name == "val_check_interval":
                value = _check_interval(value)
            elif name in _WHOLE:
                value = _DEFAULTS.get(name) if value is None else value
                value = _whole(name, value, *_WHOLE[name])
            changed = replace(self, **{name: value})
            _check_clipping(changed.gradient_clip_val, changed.gradient_clip_algorithm)
            _check_validation(changed.check_val_every_n_epoch, changed.val_check_interval)
        except MisconfigurationError as error:
            text = str(error).replace(f"Trainer({name}={value!r})", f"trainer.{name} = {value!r}", 1)
            raise MisconfigurationError(text) from None
        return changed


_WHOLE_NUMBERS: tuple[tuple[str, int, bool], ...] = (
    ("num_nodes", 1, False),
    ("max_epochs", -1, True),
    ("min_epochs", 0, True),
    ("max_steps", -1, False),
    ("min_steps", 0, True),
    ("check_val_every_n_epoch", 1, True),
    ("num_sanity_val_steps", -1, True),
    ("reload_dataloaders_every_n_epochs", 0, False),
    ("log_every_n_steps", 1, True),
    ("accumulate_grad_batches", 1, False),
    ("threads_per_worker", 1, True),
    ("spares", 0, False),
    ("max_failures", -1, True),
)
_WHOLE = {name: (least, optional) for name, least, optional in _WHOLE_NUMBERS}
_DEFAULTS = {"num_sanity_val_steps": 2, "log_every_n_steps": 50}
_SWITCHES = (
    "inference_mode",
    "use_distributed_sampler",
    "pad_uneven",
    "join_uneven",
    "enable_checkpointing",
    "enable_progress_bar",
    "sync_batchnorm",
    "detect_anomaly",
    "enable_model_summary",
    "enable_autolog_hparams",
    "ledger",
)


def _deterministic(value: Any) -> bool | str:
    if value is None:
        return False
    if isinstance(value, bool) or value == "warn":
        return value  # type: ignore[no-any-return]
    raise MisconfigurationError(f"Trainer(deterministic={value!r}). Use True, False or 'warn'.")


def _whole(name: str, value: Any, least: int, optional: bool) -> int | None:
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MisconfigurationError(
            f"Trainer({name}={value!r}). Use a whole number of at least "
            f"{least}{' or None' if optional else ''}."
        )
    return value


def _check_least(kind: str, least: int | None, most: int | None) -> None:
    if least is not None and most not in (None, -1) and least > most:
        raise MisconfigurationError(
            f"Trainer(min_{kind}={least}, max_{kind}={most}): training cannot be longer than its end. Use "
            f"min_{kind} of at most {most}, or a greater max_{kind}."
        )


def _limit(name: str, value: Any) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise MisconfigurationError(
            f"Trainer({name}={value!r}). Use a number of batches, or a share from 0.0 to 1.0."
        )
    if isinstance(value, float) and value > 1.0:
        if value != int(value):
            raise MisconfigurationError(
                f"Trainer({name}={value!r}) is more than all batches. Use a share from 0.0 to 1.0, or a "
                "whole number of batches."
            )
        return int(value)
    return value


def _fast_dev_run(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise MisconfigurationError(
            f"Trainer(fast_dev_run={value!r}). Use True, False, or a number of batches."
        )
    return int(value)


def _what_fast_dev_run_sets(batches: int) -> dict[str, Any]:
    return {
        **dict.fromkeys(_LIMITS, batches),
        "max_steps": batches,
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": 1,
        "enable_checkpointing": False,
    }


def _what_barebones_sets(values: dict[str, Any]) -> dict[str, Any]:
    """Return what ``barebones=True`` turns off, unless something of it was asked for."""
    off: dict[str, Any] = {
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    asked = [
        f"{name}={values[name]!r}"
        for name in (*off, "fast_dev_run", "detect_anomaly", "log_every_n_steps")
        if values.get(name)
    ]
    if asked:
        raise MisconfigurationError(
            f"Trainer(barebones=True, {', '.join(asked)}): barebones leaves out all that is not training "
            f"itself. Leave out {' and '.join(item.partition('=')[0] for item in asked)}, or barebones."
        )
    return off


def _check_interval(value: Any) -> int | float | timedelta:
    if value is None:
        return 1.0
    if isinstance(value, (str, dict, timedelta)):
        found = parse_duration("Trainer(val_check_interval=", value)
        if not found:
            raise MisconfigurationError(
                f"Trainer(val_check_interval={value!r}) is no time at all. Use a length of time above 0, or "
                "1 to validate after every batch."
            )
        return found
    if isinstance(value, float) and value > 1.0 and value.is_integer():
        return int(value)
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    share = isinstance(value, float) and 0.0 < value <= 1.0
    if not (whole or share):
        raise MisconfigurationError(
            f"Trainer(val_check_interval={value!r}). Use a share of the epoch above 0.0 up to 1.0, a whole "
            "number of batches, or a length of time as 'DD:HH:MM:SS'."
        )
    return value  # type: ignore[no-any-return]


def _check_validation(every_n_epoch: int | None, interval: int | float | timedelta) -> None:
    if every_n_epoch is None and isinstance(interval, float):
        raise MisconfigurationError(
            f"Trainer(check_val_every_n_epoch=None, val_check_interval={interval}): validation that is not "
            "tied to epochs needs val_check_interval as a number of batches or a length of time."
        )


def _check_clipping(value: Any, algorithm: Any) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0
    ):
        raise MisconfigurationError(
            f"Trainer(gradient_clip_val={value!r}). Use a number of at least 0, or None."
        )
    if algorithm is not None and algorithm not in ("norm", "value"):
        raise MisconfigurationError(
            f"Trainer(gradient_clip_algorithm={algorithm!r}) is "
            f"unknown.{suggest(algorithm, ('norm', 'value'))} "
            "Use 'norm' or 'value'."
        )


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise MisconfigurationError(f"Trainer({name}={value!r}). Use True or False.")


def _check_seconds(name: str, value: Any, optional: bool = False) -> None:
    if optional and value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        alternative = " or None" if optional else ""
        raise MisconfigurationError(
            f"Trainer({name}={value!r}). Use a number of seconds above 0{alternative}."
        )


def _root(value: Any) -> str:
    if value is None:
        return os.getcwd()
    if not isinstance(value, (str, os.PathLike)):
        raise MisconfigurationError(f"Trainer(default_root_dir={value!r}). Use a path.")
    path = os.fspath(value)
    if "://" in path:
        raise MisconfigurationError(
            f"Trainer(default_root_dir={path!r}): only local paths can be written. Use one."
        )
    return os.path.abspath(os.path.expanduser(path))


def _resources(value: Any) -> tuple[tuple[str, float], ...] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and isinstance(item, (int, float)) and item >= 0 for key, item in value.items()
    ):
        raise MisconfigurationError(
            f"Trainer(resources_per_worker={value!r}). Use a dictionary like {{'CPU': 1, 'GPU': 0.5}}."
        )
    return tuple(sorted((key, float(item)) for key, item in value.items()))
