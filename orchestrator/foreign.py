"""Real Lightning objects: how a LightningModule, data module, callback or logger of Lightning's is told, and
made to work here unchanged.

Nothing is imported: an object is Lightning's when a class of its own line has the name and home of
Lightning's base class. Hooks count as overridden against that base, so a hook that only Lightning's empty
method stands for is never called. While a run lasts, the module's services that reach into Lightning's
Trainer (`log`, `optimizers`, ...) are ours, bound to the one instance and taken away afterwards. What works
deep inside Lightning's loops cannot work here, and is refused by name.
"""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

from modules.datamodule import LightningDataModule
from modules.log import LogMixin
from modules.module import LightningModule
from modules.module_hooks import ModuleHooks
from modules.optimization import OptimizationMixin
from orchestrator.errors import MisconfigurationError

_ROOTS = ("lightning.pytorch", "pytorch_lightning")
_MODULE = ("core.module", "LightningModule")
_DATAMODULE = ("core.datamodule", "LightningDataModule")
_CALLBACK = ("callbacks.callback", "Callback")
_LOGGER = ("loggers.logger", "Logger")
_CHECKPOINT = ("callbacks.checkpoint", "Checkpoint")
_EARLY_STOPPING = ("callbacks.early_stopping", "EarlyStopping")
_PROGRESS_BAR = ("callbacks.progress.progress_bar", "ProgressBar")
_BASES = (_MODULE, _DATAMODULE, _CALLBACK, _LOGGER)
_SERVICES = frozenset(
    {
        "all_gather",
        "clip_gradients",
        "log",
        "log_dict",
        "lr_schedulers",
        "manual_backward",
        "optimizers",
        "print",
        "toggle_optimizer",
        "toggled_optimizer",
        "untoggle_optimizer",
    }
)
"""Methods of a module that reach into its trainer."""
_OURS = (OptimizationMixin, LogMixin, ModuleHooks, LightningModule)
"""Where ours are defined."""
_INSIDE_LIGHTNING = {
    ("callbacks.batch_size_finder", "BatchSizeFinder"),
    ("callbacks.gradient_accumulation_scheduler", "GradientAccumulationScheduler"),
    ("callbacks.lr_finder", "LearningRateFinder"),
    ("callbacks.on_exception_checkpoint", "OnExceptionCheckpoint"),
    ("callbacks.stochastic_weight_avg", "StochasticWeightAveraging"),
    ("callbacks.throughput_monitor", "ThroughputMonitor"),
}
"""Callbacks that change Lightning's loops, or count on which hooks it leaves out after a failure."""
_BOUND = "_orchestrator_bound"


def base_of(kind: type) -> type | None:
    """Return Lightning's base class that `kind` derives from (module, data module, callback, logger)."""
    return next((item for item in kind.__mro__ if any(_is(item, base) for base in _BASES)), None)


def is_module(item: object) -> bool:
    """Whether it is a LightningModule, ours or Lightning's."""
    return isinstance(item, LightningModule) or _descends(item, _MODULE)


def is_datamodule(item: object) -> bool:
    """Whether it is a LightningDataModule, ours or Lightning's."""
    return isinstance(item, LightningDataModule) or _descends(item, _DATAMODULE)


def is_foreign_module(item: object) -> bool:
    """Whether it is Lightning's own LightningModule."""
    return _descends(item, _MODULE)


def is_foreign_callback(item: object) -> bool:
    """Whether it is a callback of Lightning's.

    Raises:
        MisconfigurationError: It is one that works only with the insides of Lightning's Trainer.
    """
    for kind in type(item).__mro__:
        for name in _INSIDE_LIGHTNING:
            if _is(kind, name):
                raise MisconfigurationError(
                    f"Trainer(callbacks=...) has Lightning's {name[1]}, which works with the insides of "
                    f"Lightning's Trainer. Use orchestrator.callbacks.{name[1]}, with the same arguments."
                )
    return _descends(item, _CALLBACK)


def is_foreign_logger(item: object) -> bool:
    """Whether it is a logger of Lightning's."""
    return _descends(item, _LOGGER)


def is_foreign_saver(callback: object) -> bool:
    """Whether it is a callback of Lightning's that writes checkpoints."""
    return _descends(callback, _CHECKPOINT)


def is_foreign_stopper(callback: object) -> bool:
    """Whether it is Lightning's EarlyStopping."""
    return _descends(callback, _EARLY_STOPPING)


def is_foreign_progress_bar(callback: object) -> bool:
    """Whether it is a progress bar of Lightning's, which draws instead of ours."""
    return _descends(callback, _PROGRESS_BAR)


def watches_metrics(callback: Any) -> bool:
    """Whether a callback runs at an epoch's end when its metrics are decided: after the module."""
    own = getattr(callback, "watches_metrics", None)
    return is_foreign_saver(callback) or is_foreign_stopper(callback) if own is None else bool(own)


def meets_ranks(callback: Any) -> bool:
    """Whether ``on_train_batch_end`` of a callback needs all ranks, also those without a batch."""
    own = getattr(callback, "meets_ranks", None)
    return is_foreign_saver(callback) if own is None else bool(own)


def unused_hooks(callback: Any) -> frozenset[str]:
    """Return the hooks that a callback overrides and has no use for; Lightning's callbacks say none."""
    own = getattr(callback, "unused_hooks", None)
    return frozenset() if own is None else own()


def claim(logger: Any) -> None:
    """Fix a logger's version, in the driver: Lightning's loggers do so when it is read."""
    own = getattr(logger, "claim", None)
    if own is not None:
        own()
    else:
        _ = logger.version


def bind(module: Any) -> None:
    """Give a module of Lightning's our services, for as long as a run lasts; ours is left as it is.

    Raises:
        MisconfigurationError: Its class overrides ``log``, whose original only Lightning's Trainer can serve.
    """
    base = base_of(type(module))
    if base is None:
        return
    if type(module).log is not base.log:  # type: ignore[attr-defined]
        raise MisconfigurationError(
            f"{type(module).__qualname__} overrides log(), and Lightning's log() works with Lightning's "
            "Trainer only. Give the method another name, or subclass orchestrator.LightningModule."
        )
    bound: dict[str, Any] = {
        name: value for name, value in LightningModule().__dict__.items() if name not in module.__dict__
    }
    for name, function in [item for kind in _OURS for item in vars(kind).items()]:
        if name.startswith("__") or not inspect.isfunction(function):
            continue
        inherited = getattr(base, name, None)
        if inherited is None or (name in _SERVICES and getattr(type(module), name) is inherited):
            bound[name] = types.MethodType(function, module)
    module.__dict__.update(bound)
    module.__dict__[_BOUND] = tuple(bound)


def release(module: Any) -> None:
    """Take away what `bind` has given."""
    for name in module.__dict__.pop(_BOUND, ()):
        module.__dict__.pop(name, None)


def tell_rank(rank: int) -> None:
    """Tell Lightning's ``rank_zero_only``, where it is loaded, which rank this is."""
    found = sys.modules.get("lightning_utilities.core.rank_zero")
    if found is not None:
        found.rank_zero_only.rank = rank


def _is(kind: type, name: tuple[str, str]) -> bool:
    return kind.__name__ == name[1] and kind.__module__ in [f"{root}.{name[0]}" for root in _ROOTS]


def _descends(item: object, name: tuple[str, str]) -> bool:
    return any(_is(kind, name) for kind in type(item).__mro__)
