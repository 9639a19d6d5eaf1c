"""A logger that takes everything and records nothing.

It stands in where a user's logger must stay silent but the user's code should still run: under
`fast_dev_run`, and on every rank but 0, where `self.logger.experiment.add_histogram(...)` is called too. It
names the directories of the logger it stands in for, and cannot fail.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.loggers.logger import Logger


class DummyExperiment:
    """Answers any method call with None, and any index with itself."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):  # pickle and copy must not be fooled
            raise AttributeError(name)
        return _do_nothing

    def __getitem__(self, index: Any) -> DummyExperiment:
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        pass


class DummyLogger(Logger):
    """Record nothing, under the name, version and directories of `like` (none without it)."""

    def __init__(self, like: Logger | None = None) -> None:
        self._name = "" if like is None else like.name
        self._version = "" if like is None else like.version
        self._root_dir = None if like is None else like.root_dir
        self._log_dir = None if like is None else like.log_dir
        self._save_dir = None if like is None else like.save_dir

    @property
    def name(self) -> str | None:
        """The other logger's name, or an empty string."""
        return self._name

    @property
    def version(self) -> int | str | None:
        """The other logger's version, or an empty string."""
        return self._version

    @property
    def root_dir(self) -> str | None:
        """The other logger's root directory; nothing is written there."""
        return self._root_dir

    @property
    def log_dir(self) -> str | None:
        """The other logger's directory; nothing is written there."""
        return self._log_dir

    @property
    def save_dir(self) -> str | None:
        """The other logger's save directory; nothing is written there."""
        return self._save_dir

    @property
    def experiment(self) -> DummyExperiment:
        """An object whose every method does nothing."""
        return DummyExperiment()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Do nothing."""

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace | None, metrics: Mapping[str, float] | float | None = None
    ) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        # Only names that no logger has arrive here: methods of the particular logger this one stands in for.
        if name.startswith("_"):
            raise AttributeError(name)
        return _do_nothing


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    return None
