"""Writes a sharded checkpoint: each rank its own file, rank 0 the rest and, last, the manifest.

All of it goes to a hidden directory beside the place, which gets its name once the manifest is in it; so at
any instant there is either the old checkpoint or the whole new one. Ranks need not meet for it: rank 0 sees
the others' files appear, on storage that all ranks share. Where one does not appear, because its rank was
lost or its disk is full, rank 0 gives up, removes what there is and says which rank it waited for. It does so
when no rank writes there any more, also where it was itself that could not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from typing import Any

from modules.checkpoint import shards
from orchestrator.checkpoint import local_files
from orchestrator.checkpoint.writer import failure, flush_directory, write

_LOOK_S = 0.01


def write_parts(
    parts: dict[str, Any], path: str, folder: str, rank: int, count: Callable[[int], None] | None = None
) -> None:
    """Write a rank's parts into `folder`.

    Args:
        parts: What `Parts.content` returned.
        path: The checkpoint's, for messages.
        folder: The hidden directory, alike on all ranks.
        rank: Whose parts.
        count: As in `writer.write`.

    Raises:
        CheckpointWriteError: The file system refused.
    """
    try:
        write({"state_dict": {}, **parts}, os.path.join(folder, shards.rank_file(rank)), count)
    except OSError as error:
        found = failure(path, error)
        with (
            contextlib.suppress(OSError),
            open(os.path.join(folder, _note(rank, is_full=found.is_full)), "wb"),
        ):
            pass  # rank 0 need not wait any longer
        raise found from error


def write_rest(
    content: dict[str, Any],
    path: str,
    folder: str,
    world_size: int,
    gives_up: Callable[[], bool],
    count: Callable[[int], None] | None = None,
) -> None:
    """Write what is not dealt, wait for the other ranks' files, write the manifest, and give `folder` the
    name `path`. On rank 0, after `write_parts`.

    Args:
        content: With marks in the place of tensors that are dealt.
        path: The checkpoint's.
        folder: The hidden directory.
        world_size: Ranks.
        gives_up: Whether to wait no longer.
        count: As in `writer.write`.

    Raises:
        CheckpointWriteError: The file system refused, or a rank's file did not come.
    """
    names = [shards.CONTENT, *map(shards.rank_file, range(world_size))]
    try:
        write(content, os.path.join(folder, shards.CONTENT), count)
        for rank in range(1, world_size):
            _await(folder, rank, gives_up)
        unfinished = os.path.join(folder, f"{shards.MANIFEST}.tmp")
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(shards.describe(folder, names))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, os.path.join(folder, shards.MANIFEST))
        flush_directory(folder)
        local_files.put_in_place(folder, path)
        flush_directory(os.path.dirname(path))
    except BaseException as error:
        abandon(folder, world_size, gives_up)
        if isinstance(error, OSError):
            raise failure(path, error) from error
        raise


def abandon(folder: str, world_size: int, gives_up: Callable[[], bool]) -> None:
    """Remove `folder`, in which some rank could not write, once no rank writes there any more. On rank 0.

    Args:
        folder: The hidden directory.
        world_size: Ranks.
        gives_up: Whether to wait no longer.
    """
    for rank in range(1, world_size):
        while not (_is_there(folder, rank) or gives_up()):
            time.sleep(_LOOK_S)
    with contextlib.suppress(OSError):
        local_files.remove(folder)


def _is_there(folder: str, rank: int) -> bool:
    """Whether a rank has written its part, or has said that it could not."""
    names = (shards.rank_file(rank), *(_note(rank, is_full=is_full) for is_full in (True, False)))
    return any(os.path.exists(os.path.join(folder, name)) for name in names)


def _await(folder: str, rank: int, gives_up: Callable[[], bool]) -> None:
    path = os.path.join(folder, shards.rank_file(rank))
    while not os.path.exists(path):
        if os.path.exists(os.path.join(folder, _note(rank, is_full=True))):
            raise OSError(errno.ENOSPC, f"rank {rank} could not write its part")
        if os.path.exists(os.path.join(folder, _note(rank, is_full=False))):
            raise OSError(f"rank {rank} could not write its part")
        if gives_up():
            raise OSError(
                f"the part of rank {rank} did not appear. Ranks that write parts need storage that all see"
            )
        time.sleep(_LOOK_S)


def _note(rank: int, *, is_full: bool) -> str:
    """Return the name of the empty file by which a rank says that it could not write, and why."""
    return f"{'full' if is_full else 'failed'}-{rank:05d}"
