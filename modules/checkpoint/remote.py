"""Checkpoints on other file systems: anything that `pyarrow.fs` opens by its URI, such as ``s3://`` and ``hdfs://``.

A file is written on this machine first, whole and sealed, and then copied; so the other side has the old file
or the whole new one, whatever happens on the way. It is fetched as a whole before it is read. Such file
systems have no links: a second name is a small file that says which checkpoint is meant. What they refuse is
an `OSError`.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "file")
_WHOLE_ON_CLOSE = ("s3", "gcs", "abfs")
"""File systems on which a file appears when it is complete."""
_REFERENCE = "orchestrator.reference"
_SHORT = 4096


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URI."""
    return "://" in os.fspath(path)


def problem_with(path: str) -> str | None:
    """Return why a URI cannot be used, as a clause; None where it can."""
    scheme = path.partition("://")[0]
    return None if scheme in SCHEMES else f"{scheme}:// is none of {', '.join(SCHEMES)}"


def upload(local: str, uri: str) -> None:
    """Copy the complete file `local` to `uri`, in place of what is there."""
    system, path = _open(uri)
    system.create_dir(posixpath.dirname(path), recursive=True)
    unfinished = path
    if system.type_name not in _WHOLE_ON_CLOSE:
        unfinished = posixpath.join(
            posixpath.dirname(path), f".{posixpath.basename(path)}.{uuid.uuid4().hex}.tmp"
        )
    try:
        with open(local, "rb") as source, system.open_output_stream(unfinished) as target:
            shutil.copyfileobj(source, target, 16 << 20)
        if unfinished != path:
            system.move(unfinished, path)
    except BaseException:
        if unfinished != path:
            with contextlib.suppress(Exception):
                system.delete_file(unfinished)
        raise


@contextlib.contextmanager
def fetched(uri: str) -> Iterator[str]:
    """Yield the path of a copy of `uri` on this machine, which is gone at the end; what is memory-mapped
    stays readable.

    Raises:
        FileNotFoundError: There is no such file.
    """
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as folder:
        local = os.path.join(folder, posixpath.basename(uri))
        for _ in range(2):
            _download(uri, local)
            meant = _meant_by(local)
            if meant is None:
                break
            uri = posixpath.join(posixpath.dirname(uri), meant)
        yield local


def write_reference(uri: str, second: str) -> None:
    """Make `second` a name of `uri`, which lies in the same directory."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as folder:
        local = os.path.join(folder, "reference")
        with open(local, "w", encoding="utf-8") as file:
            json.dump({_REFERENCE: posixpath.relpath(uri, posixpath.dirname(second))}, file)
        upload(local, second)


def remove(uri: str) -> None:
    """Remove the file `uri`; it is no error if that is gone."""
    system, path = _open(uri)
    with contextlib.suppress(FileNotFoundError):
        system.delete_file(path)


def exists(uri: str) -> bool:
    """Whether there is a file of that name."""
    system, path = _open(uri)
    return bool(system.get_file_info(path).is_file)


def times_below(uri: str) -> dict[str, int]:
    """Return when each file below the directory `uri` was written, in nanoseconds, by its URI."""
    from pyarrow import fs

    system, path = _open(uri)
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    above = uri.rstrip("/")
    return {
        f"{above}/{posixpath.relpath(item.path, path)}": item.mtime_ns or 0 for item in found if item.is_file
    }


def _open(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    found: tuple[Any, str] = fs.FileSystem.from_uri(uri)
    return found


def _download(uri: str, local: str) -> None:
    system, path = _open(uri)
    with system.open_input_stream(path) as source, open(local, "wb") as target:
        shutil.copyfileobj(source, target, 16 << 20)


def _meant_by(local: str) -> str | None:
    """Return the name of the checkpoint that a reference means; None of a checkpoint."""
    if os.path.getsize(local) > _SHORT:
        return None
    with contextlib.suppress(ValueError, AttributeError), open(local, encoding="utf-8") as file:
        found = json.load(file).get(_REFERENCE)
        return found if isinstance(found, str) else None
    return None
