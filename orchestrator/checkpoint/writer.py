"""Writes a checkpoint so that at any instant there is either the old file or the whole new one.

The content goes to a temporary name in the same directory, is flushed to the disk, and is then renamed. A
failure removes the temporary file and leaves whatever stood under the name.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch


def write(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `content` to the file `path`, making its directory if need be.

    Raises:
        OSError: The file system refused; the message names the path. Whatever stood there before still does.
    """
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, (OSError, RuntimeError)):
            raise OSError(f"The checkpoint {path} could not be written: {error}") from error
        raise
    _flush_directory(folder)


def _flush_directory(folder: str) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
