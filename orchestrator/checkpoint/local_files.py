"""The few things that are done to checkpoint files beside writing them: list, remove, and give a second name.

Every call is made by one process. A second name appears in one step, so a reader sees the old or the new
one; removing what is gone already is no error. Otherwise they fail with the operating system's error.
"""

from __future__ import annotations

import os
import shutil


def names_below(directory: str, depth: int) -> frozenset[str]:
    """Return the absolute paths of everything in `directory`, and in its folders down to `depth` levels
    below it."""
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
    """Remove the file, link or folder `path`, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def give_second_name(path: str, second: str, *, symbolic: bool) -> None:
    """Make `second` another name of the file `path`, in place of what had that name.

    Args:
        path: The file.
        second: The name to give.
        symbolic: A relative symbolic link, which still holds when the whole folder is moved. Otherwise a hard
            link, which stays when `path` is removed, or a copy where the file system has no hard links. With
            a hard link neither file may be written in place afterwards, only replaced.
    """
    unfinished = f"{second}.{os.getpid()}.tmp"
    remove(unfinished)
    try:
        if symbolic:
            os.symlink(os.path.relpath(path, os.path.dirname(second)), unfinished)
        else:
            try:
                os.link(path, unfinished)
            except OSError:
                shutil.copyfile(path, unfinished)
        if os.path.isdir(second) and not os.path.islink(second):
            shutil.rmtree(second)
        os.replace(unfinished, second)
    finally:
        remove(unfinished)  # renaming one hard link of a file to another leaves both names
