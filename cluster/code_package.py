"""Which files of a folder are code, and the archive of them that a cluster gets.

Version control, environments, caches, logs, checkpoints and data stay behind; so does what git ignores, where
the folder is in a repository. The same files give the same bytes, and so the same name, on every machine:
nothing is sent twice. Links to files are sent as files; links to folders are left out. What cannot be read
raises `JobError` with its path.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import subprocess
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.errors import JobError

LEFT_OUT = (
    ".git", ".hg", ".svn", ".venv", "venv", "env", ".env", ".tox", ".nox", "node_modules",
    "__pycache__", "*.pyc", "*.egg-info", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints",
    ".idea", ".vscode", ".DS_Store",
    "checkpoints", "*.ckpt", "*.pt", "*.pth", "*.safetensors", "*.onnx",
    "lightning_logs", "mlruns", "wandb", "events.out.tfevents.*",
    "*.parquet", "*.arrow", "*.npy", "*.npz", "*.h5", "*.hdf5", "*.tar", "*.tar.gz", "*.zip",
)  # fmt: skip
"""Names of files and folders, anywhere below the root."""

DATA_FOLDERS = frozenset({"data", "dataset", "datasets"})
"""Names of folders that are left out where no Python file lies in them."""

RESULTS = frozenset({"run.json", "sweep.json"})
"""Names of files that tell that a folder below the root, if without code, is what a run or sweep has left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodePackage:
    """The files that are sent.

    Attributes:
        root: The folder.
        files: Paths below it and sizes in bytes, in order of their paths.
    """

    root: Path
    files: tuple[tuple[str, int], ...]

    @property
    def size_bytes(self) -> int:
        """Of all files together, before compression."""
        return sum(size for _, size in self.files)

    def largest(self, count: int = 5) -> list[tuple[str, int]]:
        """Return the largest files, the largest first."""
        return sorted(self.files, key=lambda item: (-item[1], item[0]))[:count]

    def archive(self) -> tuple[str, bytes]:
        """Return the archive's name, which follows from its content, and the archive.

        Raises:
            JobError: A file cannot be read any more.
        """
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, _ in self.files:
                path = self.root / name
                entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                try:
                    entry.external_attr = (path.stat().st_mode & 0o777) << 16
                    archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
                except OSError as error:
                    raise JobError(
                        f"{path} cannot be read: {error.strerror}. Exclude or correct it."
                    ) from error
        data = buffer.getvalue()
        return f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:32]}.zip", data


def collect(root: Path, exclude: Sequence[str] = ()) -> CodePackage:
    """Return the code below `root`.

    Args:
        root: A folder.
        exclude: More names or paths to leave out, with wildcards.

    Raises:
        JobError: It is no folder, or holds no code.
    """
    if not root.is_dir():
        raise JobError(f"{root} is not a folder. Give the one that holds your code: --working-dir.")
    names = _git_knows(root)
    if names is None:
        names = _walk(root, exclude)
    kept = [name for name in names if not is_left_out(name, exclude)]
    with_code = {part for name in kept if name.endswith(".py") for part in _folders(name)}
    results = {str(path.parent) for path in map(PurePosixPath, names) if path.name in RESULTS} - with_code
    found = []
    for name in sorted(kept):
        if any(part in results for part in _folders(name)):
            continue
        if any(PurePosixPath(part).name in DATA_FOLDERS and part not in with_code for part in _folders(name)):
            continue
        path = root / name
        if path.is_file():
            found.append((name, path.stat().st_size))
    if not found:
        raise JobError(f"{root} holds no file to send. Give the folder of your code: --working-dir.")
    return CodePackage(root=root, files=tuple(found))


def is_left_out(name: str, exclude: Iterable[str] = ()) -> bool:
    """Whether a path, with ``/`` between its parts, is left out for one of its parts or as a whole.

    >>> is_left_out("src/train.py"), is_left_out("a/.venv/lib/x.py"), is_left_out("big.bin", ["*.bin"])
    (False, True, True)
    """
    parts = PurePosixPath(name).parts
    patterns = (*LEFT_OUT, *(item.rstrip("/") for item in exclude))
    wholes = [name, *_folders(name)]
    return any(fnmatch.fnmatchcase(part, pattern) for pattern in patterns for part in (*parts, *wholes))


def _folders(name: str) -> list[str]:
    """Return the folders that a path lies in.

    >>> _folders("a/b/c.py")
    ['a/b', 'a']
    """
    return [str(folder) for folder in PurePosixPath(name).parents if str(folder) != "."]


def _git_knows(root: Path) -> list[str] | None:
    """Return the paths that git does not ignore; None where there is no repository or no git."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        answer = subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    names = [os.fsdecode(name) for name in answer.stdout.split(b"\0") if name]
    return list(dict.fromkeys(names)) or None  # all ignored: the folder is not what the repository is about


def _walk(root: Path, exclude: Sequence[str]) -> list[str]:
    names = []
    for folder, below, files in os.walk(root):
        place = Path(folder).relative_to(root)
        below[:] = sorted(name for name in below if not is_left_out((place / name).as_posix(), exclude))
        names += [(place / name).as_posix() for name in files]
    return names
