"""Which checkpoint a call starts from: every form of ``ckpt_path``.

Decided in the driver before anything starts, from what the callbacks have saved and from what lies in the
directories that they were told. What cannot be found is an error that says what can be given, but for
``"last"`` and ``Trainer(resume="auto")``: a script that is started for the first time, and again after a
failure, says it both times. These two take the newest that is whole, and name those that are not.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modules.checkpoint import remote
from orchestrator.callbacks.checkpoint_keeper import INTERRUPTED_NAME
from orchestrator.checkpoint import local_files, newest
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers.version_directory import VersionDirectoryLogger

_RESUMES_ITSELF = "OnExceptionCheckpoint"


def resolve_checkpoint(
    fn: str,
    ckpt_path: str | os.PathLike[str] | None,
    savers: Sequence[Any],
    *,
    best: bool = False,
    stacklevel: int = 2,
    verified: set[str] | None = None,
) -> str | None:
    """Return the path of the checkpoint that a call starts from, or None.

    Args:
        fn: The call.
        ckpt_path: A path, ``"best"``, ``"last"`` or None.
        savers: The callbacks that save checkpoints, in order.
        best: No module was given to an evaluation: None stands for the best checkpoint, if there is one.
        stacklevel: Of warnings: whose line they name, counted from the caller.
        verified: Gets the path where all of the checkpoint was compared with its checksums.

    Raises:
        MisconfigurationError: No such checkpoint was saved, or it is no path or URI that can be read.
        FileNotFoundError: There is no such file.
    """
    best_paths = (str(item.best_model_path) for item in savers if hasattr(item, "best_model_path"))
    best_path = next(best_paths, "")
    if ckpt_path is None:
        if best and best_path:
            warnings.warn(
                f"{fn}() was called without a module, so it takes the best checkpoint, {best_path}. Write "
                f"{fn}(ckpt_path='best') to mean that, or {fn}(model) for the weights as they are.",
                stacklevel=stacklevel + 1,
            )
            return best_path
        itself = [item for item in savers if _is_a(item, _RESUMES_ITSELF)]
        found = _newest(itself, fn, stacklevel + 1) if fn == "fit" and itself else None
        return _noted(found, verified)
    if not isinstance(ckpt_path, (str, os.PathLike)):
        raise MisconfigurationError(f"{fn}(ckpt_path={ckpt_path!r}). Use a path, 'best', 'last' or None.")
    name = os.fspath(ckpt_path)
    if name == "best":
        if not best_path:
            raise MisconfigurationError(
                f"{fn}(ckpt_path='best'): no checkpoint was saved yet. Fit with a ModelCheckpoint "
                "first, or give a path."
            )
        return best_path
    if name == "last":
        found = _noted(_newest(savers, fn, stacklevel + 1), verified)
        if found is None:
            warnings.warn(
                f"{fn}(ckpt_path='last'): there is no last checkpoint yet, so the weights are taken as they "
                "are. ModelCheckpoint(dirpath=..., save_last=True) writes one.",
                stacklevel=stacklevel + 1,
            )
        return found
    if name in ("hpc", "registry") or name.startswith("registry:"):
        raise MisconfigurationError(
            f"{fn}(ckpt_path={name!r}): checkpoints are not chosen by a scheduler or registry here. Give a "
            "path, 'best' or 'last'."
        )
    if remote.is_remote(name):
        problem = remote.problem_with(name)
        if problem is not None:
            raise MisconfigurationError(
                f"{fn}(ckpt_path={name!r}): {problem}. Download it first, and give the path."
            )
        if not remote.exists(name):
            raise FileNotFoundError(f"{fn}(ckpt_path={name!r}): there is no such file.")
        return name
    path = os.path.abspath(os.path.expanduser(name))
    if not os.path.exists(path):
        raise FileNotFoundError(f"{fn}(ckpt_path={name!r}): there is no file {path}.")
    return path


def check_weights_only(fn: str, weights_only: bool | None, stacklevel: int = 2) -> None:
    """Say that ``weights_only=False`` changes nothing: what is in a checkpoint is never executed.

    Raises:
        MisconfigurationError: It is not True, False or None.
    """
    if weights_only not in (None, True, False):
        raise MisconfigurationError(f"{fn}(weights_only={weights_only!r}). Use True or None.")
    if weights_only is False:
        warnings.warn(
            f"{fn}(weights_only=False) changes nothing: a checkpoint is always read without running code "
            "from it. Leave it out.",
            stacklevel=stacklevel + 1,
        )


def newest_of_run(
    savers: Sequence[Any],
    loggers: Sequence[Any],
    root: str,
    *,
    stacklevel: int = 2,
    verified: set[str] | None = None,
) -> str | None:
    """Return the newest whole checkpoint that a run has left where this one will save, or None.

    Where nothing says the directory, those of all versions of the first logger are meant, and the loggers
    go on in the version whose checkpoint is taken.

    Args:
        savers: The callbacks that save checkpoints.
        loggers: The loggers.
        root: The Trainer's ``default_root_dir``.
        stacklevel: As for `resolve_checkpoint`.
        verified: Likewise.
    """
    told = [str(item.dirpath) for item in savers if getattr(item, "dirpath", None)]
    versions = _checkpoint_folders(loggers, root) if not told or len(told) < len(savers) else []
    paths = newest.newest_first(newest.checkpoints_in([*told, *versions]))
    found = newest.first_usable(paths, "Trainer(resume='auto')", trains=True, stacklevel=stacklevel + 1)
    if found is not None:
        _go_on_in_version(loggers, found)
    return _noted(found, verified)


def _checkpoint_folders(loggers: Sequence[Any], root: str) -> list[str]:
    """Return where a ModelCheckpoint saves that was not told, in every version of the first logger."""
    if not loggers:
        return [os.path.join(root, "checkpoints")]
    logger = loggers[0]
    above = logger.root_dir or os.path.join(logger.save_dir or root, str(logger.name or ""))
    return sorted(str(path) for path in Path(above).glob("*/checkpoints"))


def _go_on_in_version(loggers: Sequence[Any], path: str) -> None:
    """Let loggers that have no version yet take the one that `path` is in."""
    for logger in loggers:
        if isinstance(logger, VersionDirectoryLogger) and logger._version is None:
            above = os.path.realpath(logger.root_dir)
            inside = os.path.relpath(os.path.realpath(path), above).split(os.sep)
            if len(inside) > 2 and inside[1] == "checkpoints":
                number = inside[0].removeprefix("version_")
                logger._version = int(number) if number.isdigit() and number != inside[0] else inside[0]


def _newest(savers: Sequence[Any], fn: str, stacklevel: int) -> str | None:
    """Return the newest whole one of the files that count as last; where all of those are damaged, of any
    that the savers have left; or None.
    """
    last = newest.newest_first(path for item in savers for path in _last_files(item))
    if not last:
        return None
    folders = [str(item.dirpath) for item in savers if getattr(item, "dirpath", None)]
    older = newest.newest_first(newest.checkpoints_in(folders))
    paths = [*last, *(path for path in older if path not in last)]
    return newest.first_usable(
        paths, f"{fn}(ckpt_path='last')", trains=fn == "fit", stacklevel=stacklevel + 1
    )


def _noted(path: str | None, verified: set[str] | None) -> str | None:
    if path is not None and verified is not None:
        verified.add(path)
    return path


def _last_files(saver: Any) -> list[str]:
    found = [str(getattr(saver, "last_model_path", "") or "")]
    if _is_a(saver, _RESUMES_ITSELF):
        return [str(saver.ckpt_path)]
    directory = getattr(saver, "dirpath", None)
    if directory:
        start = str(getattr(saver, "CHECKPOINT_NAME_LAST", "last")).partition("{")[0]
        end = str(getattr(saver, "FILE_EXTENSION", ".ckpt"))
        for item in sorted(local_files.names_below(str(directory), 0)):
            name = os.path.basename(item)
            if name == INTERRUPTED_NAME or (name.startswith(start) and name.endswith(end)):
                found.append(item)
    return [path if remote.is_remote(path) else os.path.abspath(path) for path in found if path]


def _is_a(item: Any, name: str) -> bool:
    """Whether `item` is of a class of that name, ours or Lightning's."""
    return any(kind.__name__ == name for kind in type(item).__mro__)
