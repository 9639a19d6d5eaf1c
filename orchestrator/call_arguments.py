"""What a user gives to fit, validate, test and predict, checked before anything starts.

Here are the module, data modules and loaders. Nothing is changed and nothing is read. What cannot work is a
`MisconfigurationError` that names the entry point and what it was given, and says what to write instead.
"""

from __future__ import annotations

from typing import Any, cast

from torch.utils.data import DataLoader, IterableDataset

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator import foreign, legacy
from orchestrator.arguments import checkpoints_last, instance_of
from orchestrator.batch_limits import empty_loader
from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError
from orchestrator.hooks import overrides
from orchestrator.job import Job
from orchestrator.loader_forms import check_source, form_of, may_be_empty
from orchestrator.settings import Settings
from orchestrator.step_parts import training_step_arguments

_FIRST_KIND = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
_NEEDED_METHODS = {
    "fit": ("training_step", "configure_optimizers"),
    "validate": ("validation_step",),
    "test": ("test_step",),
}


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


def check_loaders(job: Job, settings: Settings, ranks: int) -> None:
    """Refuse loaders that were given and cannot be read or have no batch, before any worker starts."""
    for kind, given in job.loaders.items():
        check_source(given, kind, ranks, sent=True)
        for name, source in form_of(given, kind).members:
            sized = isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset)
            wanted = getattr(settings, f"limit_{kind}_batches") != 0 and not may_be_empty(job.module)
            if sized and len(source) == 0 and wanted:
                raise empty_loader(source, kind, ranks, name)


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
                f"{instance_of(item, Callback)}"
            )
    replaced = {type(item) for item in added}
    return checkpoints_last([item for item in callbacks if type(item) not in replaced] + added)


def _check_module(module: Any, fn: str) -> LightningModule:
    if module is None:
        raise MisconfigurationError(
            f"{fn}() needs a module: this trainer has not seen one yet. Call {fn}(model)."
        )
    if not foreign.is_module(module):
        raise MisconfigurationError(
            f"{fn}() got a {type(module).__name__}, which is not a LightningModule. "
            f"{instance_of(module, LightningModule)}"
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
