"""Loads the package behind a logger when the logger is made, and keeps it within bounds while it opens.

Such packages are extras: one that is missing is an `ImportError` that names the extra. On import and when a
run is opened they read environment variables; `surroundings` sets the ones that keep a local run local, where
the user has not set them, and takes them back at once, so that nothing else in the process is changed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any


def load(name: str, *, logger: str, extra: str, variables: Mapping[str, str]) -> Any:
    """Import the package `name` and return it.

    Args:
        name: Of the package, as it is imported.
        logger: The class that needs it, for the message.
        extra: Of this project, that installs it.
        variables: The surroundings in which to import it.

    Raises:
        ImportError: It is not installed.
    """
    try:
        with surroundings(variables), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it has to say about its own parts is not the user's doing
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{logger} needs the package {name}: {error}. "
            f"Install it: pip install 'ray-training-orchestrator[{extra}]'."
        ) from error


@contextlib.contextmanager
def surroundings(variables: Mapping[str, str]) -> Iterator[None]:
    """Set those environment variables that are not set, and afterwards remove them again."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
