"""The few things that are done to checkpoints beside writing them: list, remove, and give a second name.

Paths are of this machine, or URIs of other file systems, on which a second name is a reference.

Every call is made by one process. A second name appears in one step, so a reader sees the old or the new
one; only where a directory takes the place of another is there an instant without either. Removing what is
gone already is no error. Otherwise they fail with the operating system's error.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket

from modules.checkpoint import remote
from modules.checkpoint.shards import MANIFEST

_OLD = "~"
"""Ends the name of what is about to be replaced."""
_LEFT = re.compile(r"\.(.+)\.([^.]+)\.([0-9]+)\.tmp")


def names_below(directory: str, depth: int) -> frozenset[str]:
    """Return the absolute paths of everything in `directory`, and in its folders down to `depth` levels
    below it."""
    if remote.is_remote(directory):
        return frozenset(remote.times_below(directory))
    found: set[str] = set()
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                found.add(os.path.abspath(entry.path))
                if depth > 0 and entry.is_dir():
                    found |= names_below(entry.path, depth - 1)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return frozenset(found)


def remove(path: str) -> None:
    """Remove the file, link or folder `path`, if it is there; a folder all at once, as far as others see."""
    if remote.is_remote(path):
        remote.remove(path)
        return
    if os.path.isdir(path) and not os.path.islink(path):
        hidden = path
        if not os.path.basename(path).startswith("."):
            hidden = temporary_name(f"{path}{_OLD}")
            if os.path.lexists(hidden):
                remove(hidden)
            os.rename(path, hidden)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(hidden, MANIFEST))  # from here on it is no checkpoint
        shutil.rmtree(hidden)
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def exists(path: str) -> bool:
    """Whether there is something of that name."""
    return remote.exists(path) if remote.is_remote(path) else os.path.exists(path)


def whole_path(path: str | os.PathLike[str]) -> str:
    """Return a path as an absolute one without links; a URI as it is, without a slash at its end."""
    if remote.is_remote(path):
        return os.fspath(path).rstrip("/")
    return os.path.realpath(os.path.expanduser(path))


def temporary_name(path: str) -> str:
    """Return where this process writes what becomes `path`: hidden, in the same directory."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, f".{name}.{_host()}.{os.getpid()}.tmp")


def put_in_place(unfinished: str, path: str) -> None:
    """Give the complete file or directory `unfinished` the name `path`, in place of what had that name."""
    old = None
    if os.path.isdir(path) and not os.path.islink(path):
        old = temporary_name(f"{path}{_OLD}")
        remove(old)
        os.rename(path, old)
    elif os.path.isdir(unfinished) and not os.path.islink(unfinished):
        remove(path)  # a directory cannot take a file's place
    os.replace(unfinished, path)
    if old is not None:
        remove(old)


def tidy(folder: str) -> None:
    """Clear up in `folder` what processes of this machine left that were killed while they saved.

    What is not complete is removed. A complete directory that was about to get its name gets it.
    """
    if remote.is_remote(folder):
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    left = [(found, name) for name in names if (found := _LEFT.fullmatch(name)) is not None]
    left.sort(key=lambda item: item[0][1].endswith(_OLD))  # the newer one comes first
    for found, name in left:
        if found[2] != _host() or _runs(int(found[3])):
            continue
        path = os.path.join(folder, name)
        target = os.path.join(folder, found[1].removesuffix(_OLD))
        with contextlib.suppress(OSError):  # another process is at it
            if os.path.exists(os.path.join(path, MANIFEST)) and not os.path.lexists(target):
                os.rename(path, target)
            else:
                remove(path)


def give_second_name(path: str, second: str, *, symbolic: bool) -> None:
    """Make `second` another name of the file or directory `path`, in place of what had that name.

    Args:
        path: The checkpoint. The files of a directory get second names in another directory.
        second: The name to give.
        symbolic: A relative symbolic link, which still holds when the whole folder is moved. Otherwise a hard
            link, which stays when `path` is removed, or a copy where the file system has no hard links. With
            a hard link neither file may be written in place afterwards, only replaced.
    """
    if remote.is_remote(second):
        remote.write_reference(path, second)
        return
    unfinished = temporary_name(second)
    remove(unfinished)
    try:
        if symbolic:
            os.symlink(os.path.relpath(path, os.path.dirname(second)), unfinished)
        elif os.path.isdir(path):
            shutil.copytree(path, unfinished, copy_function=_link_or_copy)
        else:
            _link_or_copy(path, unfinished)
        put_in_place(unfinished, second)
    finally:
        remove(unfinished)  # renaming one hard link of a file to another leaves both names


def _link_or_copy(path: str, second: str) -> str:
    """Give a file a second name; where the file system has no hard links, or not so many, a copy."""
    try:
        os.link(path, second)
    except OSError:
        shutil.copyfile(path, second)
    return second


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def _runs(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
