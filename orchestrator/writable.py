"""Finds out before a run whether it will be able to write: the folders of its logs and checkpoints.

Nothing is made and nothing is written: of each folder the part of its path that exists must be a folder that
this user can write into. So a wrong path is told of before the first batch, not behind the first epoch. What
only a try would show, a full disk for one, shows when it happens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers.version_directory import VersionDirectoryLogger

if TYPE_CHECKING:
    from orchestrator.trainer import Trainer


def refuse_unwritable(trainer: Trainer) -> None:
    """Refuse a trainer whose logs or checkpoints have no place.

    Raises:
        MisconfigurationError: A folder cannot be made or written.
    """
    for path, argument in _folders(trainer):
        problem = why_unwritable(path)
        if problem is not None:
            raise MisconfigurationError(
                f"{path} cannot be written: {problem}. Give another folder: {argument}."
            )


def _folders(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Yield what is written into, and the argument that says so."""
    root = trainer.settings.default_root_dir
    for logger in trainer.loggers:
        if isinstance(logger, VersionDirectoryLogger):
            is_default = os.path.abspath(logger.save_dir) == root
            argument = (
                "Trainer(default_root_dir=...)" if is_default else f"{type(logger).__name__}(save_dir=...)"
            )
            yield os.path.abspath(logger.root_dir), argument
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        if folder is None and not trainer.loggers:
            yield root, "Trainer(default_root_dir=...)"
        elif folder is not None and "://" not in os.fspath(folder):
            yield os.path.abspath(folder), f"{type(callback).__name__}(dirpath=...)"


def why_unwritable(path: str) -> str | None:
    """Return why a folder cannot be made or written into, or None if it seems that it can.

    Args:
        path: Absolute.
    """
    place = path
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        return f"{place} is no folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} is not for this user to write into"
    return None
