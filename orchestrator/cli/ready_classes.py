"""The classes that a command line can name without a path: ``--trainer.callbacks+=EarlyStopping``.

jsonargparse knows a class by its name alone once it has been imported; our packages import theirs on first
use. Loggers whose package is missing are imported too: they say which extra to install when they are made.
"""

from __future__ import annotations

import importlib

_PACKAGES = ("callbacks", "loggers", "profilers", "strategies", "plugins")


def load() -> None:
    """Import everything that the packages of ready classes offer."""
    for package in _PACKAGES:
        module = importlib.import_module(f"orchestrator.{package}")
        for name in module.__all__:
            getattr(module, name)
