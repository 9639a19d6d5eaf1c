"""Finds the newest checkpoint that can be used: where a run goes on that was interrupted, however badly.

Candidates are looked at from the newest to the oldest, by the time they were written. One that is damaged is
named in a warning, with the reason, and the one before it is taken; one of weights alone, from which training
cannot go on, is passed over. Hard and symbolic links of one file count once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence

from modules.checkpoint import remote
from modules.checkpoint.files import CheckpointError
from modules.checkpoint.format import check
from orchestrator.checkpoint import local_files

_DEPTH = 2
"""Folders below a directory of checkpoints that a template such as ``{epoch}/{step}`` may have made."""


def checkpoints_in(folders: Iterable[str], ending: str = ".ckpt") -> list[str]:
    """Return the paths of all checkpoints in `folders`, files and directories of shards."""
    found: set[str] = set()
    for folder in dict.fromkeys(folders):
        local_files.tidy(folder)
        found |= local_files.names_below(folder, _DEPTH)
    directories = {path for path in found if path.endswith(ending) and os.path.isdir(path)}
    return sorted(
        path
        for path in found
        if path.endswith(ending)
        and not os.path.basename(path).startswith(".")
        and os.path.dirname(path) not in directories
    )


def newest_first(paths: Iterable[str]) -> list[str]:
    """Return the paths that exist, the newest first, and of several names of one file the first."""
    times: dict[tuple[int, int] | str, tuple[int, str]] = {}
    folders: dict[str, dict[str, int]] = {}
    for path in sorted(paths):
        if remote.is_remote(path):
            folder = path.rpartition("/")[0]
            if folder not in folders:
                folders[folder] = remote.times_below(folder)
            if path in folders[folder]:
                times[path] = folders[folder][path], path
            continue
        try:
            found = os.stat(path)
        except OSError:
            continue
        times.setdefault((found.st_dev, found.st_ino), (found.st_mtime_ns, path))
    ordered = sorted(times.values(), key=lambda item: (-item[0], item[1]))
    return [path for _, path in ordered]


def first_usable(paths: Sequence[str], caller: str, *, trains: bool, stacklevel: int) -> str | None:
    """Return the first of `paths` that is whole, all of it read and compared with its checksums; or None.

    Args:
        paths: From the best to the worst.
        caller: The call, for messages.
        trains: Training is to go on from it, so weights alone will not do.
        stacklevel: Of warnings, counted from the caller.
    """
    for path in paths:
        try:
            can_train = check(path)
        except (CheckpointError, FileNotFoundError) as error:
            warnings.warn(
                f"{caller}: {str(error).removesuffix(' Take an earlier one.')} The one before it is taken.",
                stacklevel=stacklevel + 1,
            )
            continue
        if can_train or not trains:
            return path
    return None
