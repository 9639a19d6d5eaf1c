"""What a user gives to the Trainer's constructor: older forms, loggers and callbacks, checked before anything
starts.

Plain values are `Settings`' business, and what is given to a call is `orchestrator.call_arguments`'. Nothing
is changed and nothing is opened. What cannot work is a `MisconfigurationError` that names the argument as the
user wrote it and says what to write instead; an argument that does not exist is a `TypeError`.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, ParamSpec, cast

from orchestrator import foreign, from_environment, legacy
from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.checkpoint import Checkpoint
from orchestrator.callbacks.factories import callbacks_of_factories
from orchestrator.callbacks.model_checkpoint import ModelCheckpoint
from orchestrator.callbacks.model_summary import ModelSummary
from orchestrator.callbacks.progress_bar import ProgressBar
from orchestrator.callbacks.rich_progress_bar import RichProgressBar
from orchestrator.callbacks.timer import Timer
from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.hooks import overrides
from orchestrator.loggers.csv import CSVLogger
from orchestrator.loggers.dummy import DummyLogger
from orchestrator.loggers.logger import Logger
from orchestrator.loggers.tensorboard import TensorBoardLogger
from orchestrator.settings import Settings

P = ParamSpec("P")

_INSTEAD = {
    "max_batches": "Use limit_train_batches=N.",
    "model_registry": "Registries of one vendor are not supported: leave it out.",
    "num_workers": "Use devices=N; a DataLoader has num_workers.",
}
_NO_ARGUMENTS = ("self", "unknown", "return")


def as_written(init: Callable[P, None]) -> Callable[P, None]:
    """Let the Trainer's constructor take older forms, and from the environment what the script leaves out."""
    known = {name: str(kind) for name, kind in init.__annotations__.items() if name not in _NO_ARGUMENTS}

    @functools.wraps(init)
    def constructor(*args: Any, **given: Any) -> None:
        given = legacy.modernize(given, known)
        resume = given.pop("resume_from_checkpoint", None)
        found = from_environment.read(os.environ, known)
        taken = {name: value for name, value in found.items() if name not in given}
        try:
            init(*args, **{**taken, **given})
        except MisconfigurationError as error:
            raise from_environment.naming(error, taken) from error.__cause__
        if resume is not None:
            args[0].fit_from = resume

    return cast("Callable[P, None]", constructor)


def refuse_unknown(name: str, known: list[str]) -> NoReturn:
    """Raise the TypeError for an argument `name` that the Trainer has not; `known` are those that it has."""
    if name in _INSTEAD:
        raise TypeError(f"Trainer has no argument {name!r}. {_INSTEAD[name]}")
    hint = suggest(name, known)
    raise TypeError(
        f"Trainer has no argument {name!r}.{hint}" + ("" if hint else f" It has {', '.join(known)}.")
    )


def loggers_of(given: Any, settings: Settings) -> list[Logger]:
    """Return the loggers that ``Trainer(logger=given)`` means.

    Raises:
        MisconfigurationError: Something is no logger.
    """
    if settings.barebones:
        if given:
            raise MisconfigurationError(
                f"Trainer(barebones=True, logger={given!r}): barebones logs nothing. Leave one of them out."
            )
        return []
    if settings.fast_dev_run:
        return [DummyLogger()] if given not in (False, []) else []
    if given is None or given is True:
        return [TensorBoardLogger(settings.default_root_dir)]
    if given is False:
        return []
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    for item in found:
        if not isinstance(item, Logger) and not foreign.is_foreign_logger(item):
            raise MisconfigurationError(
                f"Trainer(logger={item!r}) is a {type(item).__name__}. Use True, False, a Logger such as "
                f"{CSVLogger.__name__}, or a list."
            )
    return found


def callbacks_of(
    given: Any,
    settings: Settings,
    enable_checkpointing: bool | None,
    enable_progress_bar: bool | None = None,
    enable_model_summary: bool | None = None,
) -> list[Callback]:
    """Return the callbacks that ``Trainer(callbacks=given)`` means, in the order in which they run.

    Args:
        given: What the user gave.
        settings: Say whether checkpoints are written, and what is shown.
        enable_checkpointing: What the user wrote, which settings and sweeps overrule without contradiction.
        enable_progress_bar: Likewise.
        enable_model_summary: Likewise.

    Raises:
        MisconfigurationError: Something is no callback, or two cannot be told apart or contradict an
            argument.
    """
    found = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    for item in found:
        if not isinstance(item, Callback) and not foreign.is_foreign_callback(item):
            raise MisconfigurationError(
                f"Trainer(callbacks=...) has {item!r}, which is not a callback. {instance_of(item, Callback)}"
            )
    keys = [item.state_key for item in found if overrides(item, "state_dict", Callback)]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if doubled:
        raise MisconfigurationError(
            f"Trainer(callbacks=...) has several callbacks with the state key {doubled[0]!r}, so their "
            "states cannot be told apart. "
            "Give them different arguments, or override state_key."
        )
    legacy.refuse_gone_hooks(found)
    saves = next((type(item).__name__ for item in found if saves_checkpoints(item)), None)
    if saves is not None and enable_checkpointing is False:
        raise MisconfigurationError(
            f"Trainer(enable_checkpointing=False) has {saves} among its callbacks. Leave one of them out."
        )
    bare, draws = settings.barebones, foreign.is_foreign_progress_bar
    for kind, addition, name, wanted, on in (
        (
            ProgressBar,
            RichProgressBar,
            "enable_progress_bar",
            enable_progress_bar,
            settings.enable_progress_bar,
        ),
        (
            ModelSummary,
            ModelSummary,
            "enable_model_summary",
            enable_model_summary,
            settings.enable_model_summary,
        ),
    ):
        own = [item for item in found if isinstance(item, kind) or (kind is ProgressBar and draws(item))]
        if own and (wanted is False or bare):
            argument = "barebones=True" if bare else f"{name}=False"
            raise MisconfigurationError(
                f"Trainer({argument}) has {type(own[0]).__name__} among its callbacks. Leave one of them out."
            )
        if len(own) > 1:
            raise MisconfigurationError(
                f"Trainer(callbacks=...) has {len(own)} of a kind: "
                f"{', '.join(type(item).__name__ for item in own)}. Give one."
            )
        if on and not own:
            found.append(addition())
    if saves is not None and bare:
        raise MisconfigurationError(
            f"Trainer(barebones=True) has {saves} among its callbacks. Leave one of them out."
        )
    if settings.enable_checkpointing and saves is None:
        found.append(ModelCheckpoint())
    if settings.max_time is not None and any(isinstance(item, Timer) for item in found):
        warnings.warn(
            f"Trainer(max_time={str(settings.max_time)!r}) is ignored: the Timer among the callbacks says "
            "how long training may take. Leave one of them out.",
            stacklevel=4,
        )
    elif settings.max_time is not None:
        found.append(Timer(settings.max_time))
    return checkpoints_last([*found, *callbacks_of_factories()])


def checkpoints_last(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks in their order, but those that tune first and those that save checkpoints last."""
    return sorted(callbacks, key=lambda item: (saves_checkpoints(item), not getattr(item, "tunes", False)))


def saves_checkpoints(callback: object) -> bool:
    """Whether a callback writes checkpoints: one of ours, or one of Lightning's."""
    return isinstance(callback, Checkpoint) or foreign.is_foreign_saver(callback)


def instance_of(item: object, base: type) -> str:
    """Return the advice for an object that is no instance of `base`."""
    if isinstance(item, type):
        return "Give an instance, not the class."
    return f"Subclass orchestrator.{base.__name__}."
