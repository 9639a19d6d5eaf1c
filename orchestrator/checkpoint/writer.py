"""Writes a checkpoint so that at any instant there is either the old file or the whole new one.

The content goes to a temporary name in the same directory, is sealed with a checksum, flushed to the disk,
and then renamed. A failure removes the temporary file and leaves whatever stood under the name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import torch

from modules.checkpoint import remote
from modules.checkpoint.seal import seal
from orchestrator.checkpoint import local_files

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PIECE = 64 << 20


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; whatever stood under its name still does.

    Attributes:
        is_full: The disk is full, or the user's share of it.
    """

    is_full = False


def write(
    content: dict[str, Any], path: str | os.PathLike[str], count: Callable[[int], None] | None = None
) -> str:
    """Write `content` to the file `path`, making its directory if need be; return the checksum of its seal.

    Args:
        content: Plain values and tensors.
        path: Where to; a URI of another file system too.
        count: Called with the number of bytes of each piece that was written.

    Raises:
        CheckpointWriteError: The file system refused; the message names the path.
    """
    if remote.is_remote(path):
        return _write_remote(content, os.fspath(path), count)
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    temporary = local_files.temporary_name(path)
    raw: _Raw | None = None
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, "wb+", buffering=0) as file:
            raw = _Raw(file, count)
            torch.save(content, cast(BinaryIO, raw))
            checksum = seal(cast(BinaryIO, file))
            os.fsync(file.fileno())
        local_files.put_in_place(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        cause = error if raw is None or raw.error is None else raw.error
        if isinstance(cause, (OSError, RuntimeError)):
            raise failure(path, cause) from error
        raise
    flush_directory(folder)
    return checksum


def _write_remote(content: dict[str, Any], uri: str, count: Callable[[int], None] | None) -> str:
    """Write `content` here, and copy the file to `uri`."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as folder:
        local = os.path.join(folder, "a.ckpt")
        try:
            checksum = write(content, local, count)
            remote.upload(local, uri)
        except OSError as error:
            raise failure(uri, error) from error
    return checksum


def failure(path: str, cause: BaseException) -> CheckpointWriteError:
    """Return the error that says that `path` could not be written because of `cause`."""
    if isinstance(cause, CheckpointWriteError) and path in str(cause):
        return cause
    number = getattr(cause, "errno", None)
    reason = os.strerror(number) if isinstance(number, int) else str(cause).rstrip(".")
    found = CheckpointWriteError(f"The checkpoint {path} could not be written: {reason}.")
    found.errno = number if isinstance(number, int) else None
    found.is_full = number in _FULL or getattr(cause, "is_full", False)
    return found


def flush_directory(folder: str) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Raw:
    """What torch writes to: passes pieces on without a copy, and remembers why the system refused one."""

    def __init__(self, file: Any, count: Callable[[int], None] | None) -> None:
        self._file = file
        self._count = count
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        place = 0
        try:
            while place < len(view):
                written = self._file.write(view[place : place + _PIECE])
                place += written
                if self._count is not None:
                    self._count(written)
        except OSError as error:
            self.error = error
            raise
        return len(view)

    def flush(self) -> None:
        """Nothing is buffered."""
