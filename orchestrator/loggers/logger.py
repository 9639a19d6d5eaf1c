"""What a logger is: the place where a run's numbers and hyperparameters go.

A logger is made in the driver and used by rank 0 alone, which may be another process: the object is pickled
to it, and what pickles comes back afterwards. So a logger holds open files only in attributes that its
`__getstate__` sets to None, and opens them again at the next write. `claim` runs in the driver before any
worker starts, so that every process knows one `log_dir` without asking another. An exception in a logger
ends training: losing numbers silently would be worse.
"""

# ruff: noqa: B027 - a subclass overrides what it has a use for

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.callbacks.model_checkpoint import ModelCheckpoint

T = TypeVar("T")


class Logger(ABC):
    """Base class of all loggers. A subclass gives at least a name, a version, and the two `log_` methods."""

    LOGGER_JOIN_CHAR = "-"

    @property
    @abstractmethod
    def name(self) -> str | None:
        """The experiment's name."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """The run's number or name within the experiment."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record `metrics`, plain numbers by name, at `step`."""

    @abstractmethod
    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace | None, metrics: Mapping[str, float] | float | None = None
    ) -> None:
        """Record what the run was started with, and optionally metrics to compare such runs by."""

    @property
    def root_dir(self) -> str | None:
        """The directory of all versions of the experiment, or None for a logger that writes no files."""
        return None

    @property
    def log_dir(self) -> str | None:
        """The directory of this version, or None for a logger that writes no files. Never communicates."""
        return None

    @property
    def save_dir(self) -> str | None:
        """The directory the user gave, in which all experiments lie, or None for a logger that writes no
        files."""
        return None

    @property
    def group_separator(self) -> str:
        """What this logger's viewer groups names by, between the stage and the metric, say."""
        return "/"

    @property
    def experiment(self) -> Any:
        """The object of the logging library behind this logger, for all that the methods here do not
        cover."""
        return None

    def claim(self) -> None:
        """Fix the version, in the driver, before anything starts. Calling it again changes nothing."""

    def rewind(self, step: int) -> None:
        """Forget what was recorded at `step` and later: the run goes on from there after a loss."""

    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Record the graph of `model`'s forward on `input_array`, by default `model.example_input_array`."""

    def save(self) -> None:
        """Make everything recorded so far readable by others."""

    def finalize(self, status: str) -> None:
        """End a stage with `status` ("success", "failed" or "interrupted"). Recording may go on in a next
        one."""
        self.save()

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Called on rank 0 each time `checkpoint_callback` has saved a checkpoint."""


def with_prefix(metrics: Mapping[str, Any], prefix: str | None) -> dict[str, Any]:
    """Return `metrics` with `prefix` and a dash before each name; an empty prefix changes nothing."""
    if not prefix:
        return dict(metrics)
    return {f"{prefix}{Logger.LOGGER_JOIN_CHAR}{name}": value for name, value in metrics.items()}


def rank_zero_experiment(method: Callable[[Any], T]) -> Callable[[Any], T]:
    """Decorate the `experiment` of a logger of one's own, below ``@property``: on other ranks than 0 it is an
    object whose every method does nothing.

    The trainer puts such an object there anyway; this is for loggers that are used without one.
    """

    @functools.wraps(method)
    def experiment(self: Any) -> T:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            from orchestrator.loggers.dummy import DummyExperiment

            return cast(T, DummyExperiment())
        return method(self)

    return experiment


def as_number(name: str, value: Any) -> int | float:
    """Return `value` of the metric `name` as a plain number.

    Raises:
        TypeError: when it is not one number.
    """
    if type(value) is int or type(value) is float:
        return value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"The metric {name!r} is a {type(value).__name__}: {value!r}. Log one number."
        ) from error
