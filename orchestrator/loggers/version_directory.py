"""Numbered run directories: `save_dir/name/version_0`, `version_1`, ..., one for each run.

The number of a run is one more than the highest there is, and it is taken by making the directory: the file
system lets only one of several runs do that, so runs that start at the same moment get different numbers. A
version that the user gives is used as it is, and its directory may exist. Where the directory cannot be made,
that is a `MisconfigurationError`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers.logger import Logger, with_prefix

_NUMBERED = re.compile(r"version_([0-9]+)")


def next_version(entries: Iterable[str]) -> int:
    """Return one more than the highest N among names ``version_N`` in `entries`, or 0 when there is none.

    >>> next_version(["version_0", "version_10", "version_x", "notes.txt"])
    11
    """
    taken = [int(match[1]) for match in map(_NUMBERED.fullmatch, entries) if match]
    return max(taken, default=-1) + 1


def claim_version(root_dir: str) -> int:
    """Make the next free ``version_N`` directory in `root_dir` and return N, which no other process gets.

    Raises:
        MisconfigurationError: It cannot be made.
    """
    try:
        return _claim(root_dir)
    except OSError as error:
        raise MisconfigurationError(
            f"{os.path.abspath(root_dir)} cannot be written: {error.strerror}. Give another folder: "
            "Trainer(default_root_dir=...), or the logger's save_dir."
        ) from None


def _claim(root_dir: str) -> int:
    os.makedirs(root_dir, exist_ok=True)
    while True:
        version = next_version(os.listdir(root_dir))
        try:
            os.mkdir(os.path.join(root_dir, f"version_{version}"))
        except FileExistsError:  # another run was quicker: it is in the listing now
            continue
        return version


class VersionDirectoryLogger(Logger):
    """Base of the loggers that write files into a version directory.

    Args:
        save_dir: A local directory. ``~`` and environment variables are expanded.
        name: The experiment; a directory in `save_dir`. None or "" for no such level.
        version: None claims the next number; an int N means ``version_N``; a str is the directory's name.
        prefix: Put before every metric's name, with a dash.

    Raises:
        MisconfigurationError: for an argument that cannot work.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
    ) -> None:
        self._check(save_dir, name, version, prefix)
        self._save_dir = os.fspath(save_dir)
        self._name = name or ""
        self._version = version
        self._prefix = prefix

    def _check(self, save_dir: Any, name: Any, version: Any, prefix: Any) -> None:
        kind = type(self).__name__
        if not isinstance(save_dir, str | os.PathLike):
            raise MisconfigurationError(
                f"{kind}(save_dir={save_dir!r}) is not a path. Write a str or a Path."
            )
        if "://" in os.fspath(save_dir):
            raise MisconfigurationError(
                f"{kind}(save_dir={os.fspath(save_dir)!r}) is a URL, and log files are appended to in place. "
                "Write a local directory and copy it to the store after the run."
            )
        if name is not None and not isinstance(name, str):
            raise MisconfigurationError(
                f"{kind}(name={name!r}) is not a name. Write a str, or None for no such folder."
            )
        if isinstance(version, bool) or not isinstance(version, int | str | None) or version == "":
            raise MisconfigurationError(
                f"{kind}(version={version!r}) is not a version. Write an int, a str, or None for the next."
            )
        if isinstance(version, int) and version < 0:
            raise MisconfigurationError(f"{kind}(version={version}) is negative. Write 0 or more, or None.")
        if not isinstance(prefix, str):
            raise MisconfigurationError(f"{kind}(prefix={prefix!r}) is not a prefix. Write a str.")

    @property
    def name(self) -> str:
        """The experiment's name; an empty string where there is no such folder."""
        return self._name

    @property
    def version(self) -> int | str:
        """The run's number or name. Reading it before the run claims it, so that it stays true."""
        self.claim()
        assert self._version is not None
        return self._version

    @property
    def save_dir(self) -> str:
        """The directory the user gave, as given."""
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """``save_dir/name``: the directory of all versions."""
        save_dir = os.path.expanduser(os.path.expandvars(self._save_dir))
        return os.path.join(save_dir, self._name) if self._name else save_dir

    @property
    def log_dir(self) -> str:
        """``save_dir/name/version_N``: the directory of this version. Claims the version when none is
        claimed yet."""
        version = self.version
        return os.path.join(self.root_dir, version if isinstance(version, str) else f"version_{version}")

    def claim(self) -> None:
        """Make the next version directory, unless a version was given or is claimed already."""
        if self._version is None:
            self._version = claim_version(self.root_dir)

    def _prefixed(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return with_prefix(metrics, self._prefix)
