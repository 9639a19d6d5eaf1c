"""What the Trainer's methods are given, checked and put in order, before anything starts.

Plain values are `Settings`' business; here are the objects: loggers, callbacks, modules, data, checkpoints to
start from. Nothing is changed and nothing is opened. What cannot work is a `MisconfigurationError` that names
the argument as the user wrote it and says what to write instead.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, ParamSpec, cast

from torch.utils.data import DataLoader, IterableDataset

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator import foreign, from_environment, legacy
from orchestrator.batch_limits import empty_loader
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
from orchestrator.job import Job
from orchestrator.loader_forms import check_source, form_of, may_be_empty
from orchestrator.loggers.csv import CSVLogger
from orchestrator.loggers.dummy import DummyLogger
from orchestrator.loggers.logger import Logger
from orchestrator.loggers.tensorboard import TensorBoardLogger
from orchestrator.settings import Settings
from orchestrator.step_parts import training_step_arguments

P = ParamSpec("P")

_FIRST_KIND = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
_NEEDED_METHODS = {
    "fit": ("training_step", "configure_optimizers"),
    "validate": ("validation_step",),
    "test": ("test_step",),
}


# -------------------------------------------------------------------- of the constructor


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
                f"Trainer(callbacks=...) has {item!r}, which is not a callback. "
                f"{_instance_of(item, Callback)}"
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


# -------------------------------------------------------------------- of a call


def make_job(
    fn: str,
    module: Any,
    datamodule: Any,
    loaders: dict[str, Any],
    *,
    return_predictions: bool,
    verbose: bool,
) -> Job:
    """Return the checked call, as yet without a checkpoint to start from.

    Args:
        fn: fit, validate, test or predict.
        module: The module that was given, or the last one.
        datamodule: The data module that was given, or the last one.
        loaders: What was given for each kind of data, or None; the first may be a data module.
        return_predictions: Keep what predict_step returns.
        verbose: Print the metrics of validate and test.

    Raises:
        MisconfigurationError: The module or the data cannot work.
    """
    loaders, first = dict(loaders), _FIRST_KIND[fn]
    if foreign.is_datamodule(loaders[first]):
        if datamodule is not None:
            raise MisconfigurationError(f"{fn}() got two data modules. Give one.")
        datamodule, loaders[first] = loaders[first], None
    job = Job(
        fn=fn,
        module=_check_module(module, fn),
        datamodule=_check_datamodule(datamodule, fn, loaders),
        loaders={kind: item for kind, item in loaders.items() if item is not None},
        return_predictions=return_predictions,
        verbose=verbose,
    )
    _check_steps(job)
    _check_data(job)
    return job


def with_module_callbacks(callbacks: list[Callback], module: LightningModule) -> list[Callback]:
    """Return the callbacks with those that the module configures, which replace others of their class."""
    if not overrides(module, "configure_callbacks", LightningModule):
        return callbacks
    found = module.configure_callbacks() or []
    added = list(found) if isinstance(found, (list, tuple)) else [found]
    for item in added:
        if not isinstance(item, Callback) and not foreign.is_foreign_callback(item):
            raise MisconfigurationError(
                f"{type(module).__qualname__}.configure_callbacks returned {item!r}, which is no Callback. "
                f"{_instance_of(item, Callback)}"
            )
    replaced = {type(item) for item in added}
    return checkpoints_last([item for item in callbacks if type(item) not in replaced] + added)


def _instance_of(item: object, base: type) -> str:
    """Return the advice for an object that is no instance of `base`."""
    if isinstance(item, type):
        return "Give an instance, not the class."
    return f"Subclass orchestrator.{base.__name__}."


def _check_module(module: Any, fn: str) -> LightningModule:
    if module is None:
        raise MisconfigurationError(
            f"{fn}() needs a module: this trainer has not seen one yet. Call {fn}(model)."
        )
    if not foreign.is_module(module):
        raise MisconfigurationError(
            f"{fn}() got a {type(module).__name__}, which is not a LightningModule. "
            f"{_instance_of(module, LightningModule)}"
        )
    legacy.refuse_gone_hooks([module])
    legacy.tell_of_epoch_ends(module)
    return cast(LightningModule, module)


def _check_datamodule(datamodule: Any, fn: str, loaders: dict[str, Any]) -> LightningDataModule | None:
    if datamodule is None:
        return None
    if not foreign.is_datamodule(datamodule):
        raise MisconfigurationError(
            f"{fn}(datamodule=...) got a {type(datamodule).__name__}. Subclass "
            "orchestrator.LightningDataModule, "
            "or pass loaders by position."
        )
    given = [f"{kind}_dataloaders" for kind, item in loaders.items() if item is not None]
    if given:
        raise MisconfigurationError(f"{fn}() got a datamodule and {', '.join(given)}. Give one or the other.")
    return cast(LightningDataModule, datamodule)


def check_loaders(job: Job, settings: Settings, ranks: int) -> None:
    """Refuse loaders that were given and cannot be read or have no batch, before any worker starts."""
    for kind, given in job.loaders.items():
        check_source(given, kind, ranks, sent=True)
        for name, source in form_of(given, kind).members:
            sized = isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset)
            wanted = getattr(settings, f"limit_{kind}_batches") != 0 and not may_be_empty(job.module)
            if sized and len(source) == 0 and wanted:
                raise empty_loader(source, kind, ranks, name)


def _check_steps(job: Job) -> None:
    """Refuse a module that lacks what the call needs, or is trained in a way that is not supported."""
    module, name = job.module, type(job.module).__qualname__
    for method in _NEEDED_METHODS.get(job.fn, ()):
        if not overrides(module, method, LightningModule):
            raise MisconfigurationError(
                f"{job.fn}() needs {name}.{method}(), which is not defined. Define it."
            )
    if job.fn == "fit":
        training_step_arguments(module)
    if (
        job.fn == "fit"
        and job.loaders.get("val") is not None
        and not overrides(module, "validation_step", LightningModule)
    ):
        raise MisconfigurationError(
            f"fit() got val_dataloaders, but {name} has no validation_step(). Define it, or leave the "
            "loaders out."
        )


def _check_data(job: Job) -> None:
    """Refuse a call without the data that it reads."""
    kind = _FIRST_KIND[job.fn]
    source = job.datamodule if job.datamodule is not None else job.module
    base = LightningDataModule if job.datamodule is not None else LightningModule
    method = f"{kind}_dataloader"
    if (
        kind not in job.loaders
        and not overrides(source, method, base)
        and not overrides(job.module, method, LightningModule)
    ):
        raise MisconfigurationError(
            f"{job.fn}() has no {kind} data: none was given, and {type(source).__qualname__} has no "
            f"{method}(). "
            f"Pass a loader or a datamodule to {job.fn}(), or define {method}()."
        )
