"""Checks the arguments of `ModelCheckpoint` that need no trainer, before anything starts.

Each error is a `MisconfigurationError` with the value as the user wrote it and what to write instead.
"""

from __future__ import annotations

import os
from typing import Any

from modules.checkpoint import remote
from orchestrator.checkpoint import policy
from orchestrator.errors import MisconfigurationError


def check_place(dirpath: Any, filename: Any) -> None:
    """Check where checkpoints are saved and what they are called."""
    if dirpath is not None and not isinstance(dirpath, str | os.PathLike):
        raise MisconfigurationError(
            f"ModelCheckpoint(dirpath={dirpath!r}) is not a path. Write a str or a Path."
        )
    place = "" if dirpath is None else os.fspath(dirpath)
    problem = remote.problem_with(place) if remote.is_remote(place) else None
    if problem is not None:
        raise MisconfigurationError(
            f"ModelCheckpoint(dirpath={place!r}) cannot be written to: {problem}. Write one of "
            "these, or a local or mounted directory."
        )
    _check_name("filename", filename)
    if filename is not None:
        policy.names_in(filename)


def check_choice(monitor: Any, mode: Any, save_top_k: Any, save_last: Any) -> None:
    """Check which checkpoints are kept."""
    _check_name("monitor", monitor)
    if mode not in ("min", "max"):
        raise MisconfigurationError(
            f"ModelCheckpoint(mode={mode!r}) is neither. Write 'min' if lower is better, 'max' if higher."
        )
    if save_last is not None and not isinstance(save_last, bool) and save_last != "link":
        raise MisconfigurationError(
            f"ModelCheckpoint(save_last={save_last!r}) is not known. Write True, False or 'link'."
        )
    if not isinstance(save_top_k, int) or isinstance(save_top_k, bool) or save_top_k < -1:
        raise MisconfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k!r}) is not a count. Write 0 for none, -1 for all."
        )
    if monitor is None and save_top_k > 1:
        raise MisconfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k}, monitor=None) cannot tell which are best. "
            "Name the metric with monitor=, or write save_top_k=1 for the newest, -1 for all."
        )


def check_switches(**switches: Any) -> None:
    """Check arguments that are True or False; `save_on_train_epoch_end` may be None."""
    for name, value in switches.items():
        if not isinstance(value, bool) and not (value is None and name == "save_on_train_epoch_end"):
            raise MisconfigurationError(
                f"ModelCheckpoint({name}={value!r}) is a switch. Write True or False."
            )


def _check_name(argument: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise MisconfigurationError(
            f"ModelCheckpoint({argument}={value!r}) is not a name. Write a str, or None."
        )
