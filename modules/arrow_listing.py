"""Which files a data set consists of: paths, folders, patterns, URIs or a list of these, in a fixed order.

Folders are searched to the bottom; names that begin with "." or "_" are left out, as Spark and Hive do, and
so are files with another ending. The files of each folder and pattern come in the order of their paths, and
those of a list in the order of the list. Sizes and times of change are noted, so that a file that changes
during the run is found. Fails with a `DataError` when something is not there, cannot be reached, or is
empty.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modules.data_error import DataError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file as it was when the data set was opened.

    Attributes:
        path: The path in its file system.
        size_bytes: Its size.
        changed_ns: When it last changed, in nanoseconds since 1970; None where that is not told.
        below: The path below the folder that was given; the whole path where none was.
    """

    path: str
    size_bytes: int
    changed_ns: int | None
    below: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a data set.

    Attributes:
        filesystem: A `pyarrow.fs.FileSystem`.
        files: At least one, in order.
    """

    filesystem: Any
    files: tuple[DataFile, ...]

    @property
    def is_local(self) -> bool:
        """Whether the files are in this machine's file system, and can be mapped into memory."""
        return bool(self.filesystem.type_name == "local")

    def check_unchanged(self, index: int) -> None:
        """Raise a `DataError` if file `index` is not as it was when it was listed."""
        known = self.files[index]
        try:
            now = _described(self.filesystem.get_file_info(known.path))
        except OSError as error:
            raise DataError(f"{known.path} can no longer be read: {error}.") from error
        if now != known:
            told = "is gone" if now is None else f"had {known.size_bytes} bytes and has {now.size_bytes}"
            if now is not None and now.size_bytes == known.size_bytes:
                told = "was written again"
            raise DataError(
                f"{known.path} changed during the run: it {told}. Open the data set again, and write new "
                "data into new files."
            )


def list_files(paths: Paths, endings: Sequence[str], filesystem: Any = None) -> Listing:
    """Return the files that `paths` means.

    Args:
        paths: A path, folder, glob pattern (``**`` for any depth) or URI, or a list of these.
        endings: What the names of files in folders end with, such as ".parquet".
        filesystem: A `pyarrow.fs.FileSystem` or fsspec file system that all paths belong to; None finds it
            from the URI, and takes a path without a scheme for a local one.

    Raises:
        DataError: There is no such file, or it cannot be reached.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise DataError(
            "The list of files is empty. Give a path, folder, glob pattern or URI, or some of them."
        )
    files: dict[str, DataFile] = {}
    first: Any = None
    for item in given:
        system, path = _resolve(os.fspath(item), filesystem)
        if first is None:
            first = system
        elif not system.equals(first):
            raise DataError(
                f"{item} is in another file system than {given[0]}. Give one data set files of one."
            )
        for file in _expand(system, path, endings, str(item)):
            files.setdefault(file.path, file)
    return Listing(filesystem=first, files=tuple(files.values()))


def _resolve(path: str, filesystem: Any) -> tuple[Any, str]:
    """Return the file system of a path, and the path in it."""
    from pyarrow import fs

    try:
        if filesystem is not None:
            if not isinstance(filesystem, fs.FileSystem):
                filesystem = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
            return filesystem, path
        if "://" in path:
            head, wild, tail = _split_pattern(path)
            system, base = fs.FileSystem.from_uri(head)
            return system, f"{base.rstrip('/')}/{tail}" if wild else base
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"{path} cannot be reached: {error}. Check the URI and your credentials for it."
        ) from error
    return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))


def _expand(system: Any, path: str, endings: Sequence[str], given: str) -> list[DataFile]:
    """Return the files that one path, folder or pattern means, in the order of their paths."""
    from pyarrow import fs

    head, wild, tail = _split_pattern(path)
    exact = not wild
    try:
        if system.type_name == "local":
            exact = exact or Path(path).exists()  # a file whose name has a bracket
            names = [path] if exact else sorted(glob.glob(path, recursive=True))
            infos = system.get_file_info(names) if names else []
        else:
            infos = [system.get_file_info(path)]
            if not exact and infos[0].type == fs.FileType.NotFound:
                below = system.get_file_info(fs.FileSelector(head, recursive=True, allow_not_found=True))
                pattern = f"{head.rstrip('/')}/{tail}" if head else tail
                matching = (info for info in below if _matches(info.path, pattern))
                infos = sorted(matching, key=lambda info: str(info.path))
        found: list[DataFile] = []
        for info in infos:
            if info.type == fs.FileType.Directory:
                inside = _in_folder(system, info.path, endings)
                found += inside if exact else [replace(file, below=file.path) for file in inside]
            elif info.type == fs.FileType.File and (exact or not _is_hidden(info.base_name)):
                file = _described(info)
                assert file is not None
                found.append(file)
    except OSError as error:
        raise DataError(f"{given} cannot be listed: {error}. Check the path and the rights on it.") from error
    if not found:
        kinds = " or ".join(endings)
        raise DataError(
            f"{given} names no file: nothing is there, or a folder without {kinds} files. Check the path."
        )
    for file in found:
        if not file.size_bytes:
            raise DataError(f"{file.path} is an empty file of 0 bytes. Write it again, or remove it.")
    return found


def _in_folder(system: Any, folder: str, endings: Sequence[str]) -> list[DataFile]:
    from pyarrow import fs

    found = []
    for info in system.get_file_info(fs.FileSelector(folder, recursive=True)):
        below = info.path[len(folder) :].strip("/")
        if info.type == fs.FileType.File and info.path.endswith(tuple(endings)):
            file = _described(info)
            if file is not None and not any(_is_hidden(part) for part in below.split("/")):
                found.append(replace(file, below=below))
    return sorted(found, key=lambda file: file.path)


def _described(info: Any) -> DataFile | None:
    from pyarrow import fs

    if info.type != fs.FileType.File:
        return None
    return DataFile(path=info.path, size_bytes=info.size, changed_ns=info.mtime_ns, below=info.path)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _split_pattern(path: str) -> tuple[str, bool, str]:
    """Return the part before the first folder with a wildcard, whether there is one, and the rest."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if _WILD & set(part):
            return "/".join(parts[:index]), True, "/".join(parts[index:])
    return path, False, ""


def _matches(path: str, pattern: str) -> bool:
    """Whether `path` matches a glob pattern, in which ``*`` stays within a folder and ``**`` does not."""
    return _matches_parts(path.split("/"), pattern.split("/"))


def _matches_parts(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches_parts(path[skip:], pattern[1:]) for skip in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches_parts(path[1:], pattern[1:])
