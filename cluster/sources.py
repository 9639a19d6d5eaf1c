"""Brings the user's own modules to nodes that do not have them.

What is defined in the script itself travels by value with whatever refers to it; what is imported from files
beside the script, or from anywhere else that is no installed package, travels by name and must be importable
on every node. Where nodes share a disk it is. Elsewhere the source files of these modules are sent once per
node, put into a folder of that node's Ray session, and found before everything else. Only source files are
sent, never data; a bundle above `MAX_BYTES` is refused with `SerializationError`. Nothing is sent to workers
on the driver's own node.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

from cluster.errors import SerializationError
from cluster.preflight import OWN_PACKAGES

MAX_BYTES = 32 * 2**20
Stamp = tuple[int, int] | None
"""When a file was last written, in nanoseconds, and its size in bytes; None where there is none."""
_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Source files, by their path below the folder that is to be searched for modules.

    Attributes:
        files: such as `{"data.py": b"...", "models/net.py": b"..."}`.
        folders: where they were found, for people to read.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    folders: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(map(len, self.files.values()))

    @property
    def digest(self) -> str:
        """What tells this bundle from every other."""
        total = hashlib.sha256()
        for path, data in sorted(self.files.items()):
            total.update(f"{path}\0{len(data)}\0".encode())
            total.update(data)
        return total.hexdigest()[:16]

    def describe(self, nodes: Iterable[str]) -> str:
        """The bundle in one line, such as `2 source files (3.4 kB) of /home/me/job`, and where it went."""
        count = len(self.files)
        return (
            f"{count} source file{'s' if count != 1 else ''} ({self.size_bytes / 1000:.1f} kB) of "
            f"{', '.join(self.folders)} sent to {', '.join(f'node {node}' for node in nodes)}"
        )


def collect(modules: Mapping[str, ModuleType | None] | None = None) -> Bundle:
    """Read the source of the user's modules that are loaded here, and of those beside the script.

    Args:
        modules: by name; those of this process when None.

    Raises:
        SerializationError: they are more than `MAX_BYTES`.
    """
    loaded = dict(sys.modules) if modules is None else dict(modules)
    tops: dict[str, str] = {}
    for name, module in loaded.items():
        top = name.partition(".")[0]
        place = _place_of(loaded.get(top)) if module is not None and top not in tops else None
        if place is not None and top not in OWN_PACKAGES and top != "__main__" and _is_users(place):
            tops[top] = place
    script = getattr(loaded.get("__main__"), "__file__", None)
    if script is not None and _is_users(os.path.abspath(script)):
        for top, place in _beside(os.path.dirname(os.path.abspath(script))):
            tops.setdefault(top, place)
    files: dict[str, bytes] = {}
    folders: dict[str, None] = {}
    size_bytes = 0
    for place in tops.values():
        folder = os.path.dirname(place)
        for path in _sources(place):
            with open(path, "rb") as file:
                data = file.read()
            files[os.path.relpath(path, folder).replace(os.sep, "/")] = data
            folders[folder] = None
            size_bytes += len(data)
            if size_bytes > MAX_BYTES:
                raise SerializationError(
                    f"The modules of this program are more than {MAX_BYTES // 2**20} MiB of source, the "
                    f"last read was {path}. Install them on every node as a package, or start the script in "
                    "a folder of its own."
                )
    return Bundle(files=files, folders=tuple(folders))


def stamps() -> dict[str, Stamp]:
    """Return what tells whether a source file has changed, for each that this process has imported and that
    belongs neither to Python nor to an installed package; takes a few milliseconds.
    """
    found: dict[str, Stamp] = {}
    for name, module in list(sys.modules.items()):
        file = None if name == "__main__" else getattr(module, "__file__", None)  # that travels by value
        if isinstance(file, str) and _is_users_source(file):
            found[file] = _stamp_of(file)
    return found


def have_changed(known: Mapping[str, Stamp]) -> bool:
    """Whether any of these files is not what it was."""
    return any(_stamp_of(file) != stamp for file, stamp in known.items())


@cache
def _is_users_source(file: str) -> bool:
    return file.endswith(".py") and _is_users(file)


def _stamp_of(file: str) -> Stamp:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def missing(digests: Mapping[str, str]) -> list[str]:
    """Return which of these files this process would not import as they are.

    Args:
        digests: of the content, by path as in a bundle.
    """
    found: dict[str, str | None] = {}
    result = []
    for path, digest in digests.items():
        top = path.partition("/")[0].removesuffix(".py")
        if top not in found:
            found[top] = _find(top)
        folder = found[top]
        if folder is None or _digest_of(os.path.join(folder, path)) != digest:
            result.append(path)
    return result


def digests(bundle: Bundle) -> dict[str, str]:
    """The digest of each file's content."""
    return {path: hashlib.sha256(data).hexdigest() for path, data in bundle.files.items()}


def unpack(bundle: Bundle, parent: str) -> str:
    """Write the bundle into a folder below `parent`, unless it is there, and import from it from now on.

    Workers of one node may do so at the same time: the folder appears with its whole content or not at all.
    """
    target = os.path.join(parent, f"code-{bundle.digest}")
    if not os.path.isdir(target):
        os.makedirs(parent, exist_ok=True)
        unfinished = tempfile.mkdtemp(prefix=".code-", dir=parent)
        for path, data in bundle.files.items():
            place = os.path.join(unfinished, path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "wb") as file:
                file.write(data)
        try:
            os.rename(unfinished, target)
        except OSError:  # another worker was quicker
            import shutil

            shutil.rmtree(unfinished, ignore_errors=True)
    sys.path[:] = [target, *(entry for entry in sys.path if not _is_bundle(entry, parent))]
    importlib.invalidate_caches()
    _forget({path.partition("/")[0].removesuffix(".py") for path in bundle.files}, target)
    return target


def _forget(tops: set[str], target: str) -> None:
    """Forget modules that were imported from elsewhere, so that they are imported from the bundle."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in tops and not str(getattr(module, "__file__", "")).startswith(target):
            del sys.modules[name]


def _is_bundle(entry: str, parent: str) -> bool:
    return os.path.dirname(entry) == parent and os.path.basename(entry).startswith("code-")


def _find(top: str) -> str | None:
    """The folder from which this process would import a top-level module; None if it would not."""
    try:
        spec = importlib.machinery.PathFinder.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return os.path.dirname(os.path.abspath(str(next(iter(spec.submodule_search_locations)))))
    return None if spec.origin is None else os.path.dirname(os.path.abspath(str(spec.origin)))


def _digest_of(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def _place_of(module: ModuleType | None) -> str | None:
    """The file of a module, or the folder of a package; None for what has neither."""
    if module is None:
        return None
    paths = list(getattr(module, "__path__", []) or [])
    if paths:
        return os.path.abspath(str(paths[0]))
    file = getattr(module, "__file__", None)
    return str(os.path.abspath(file)) if isinstance(file, str) and file.endswith(".py") else None


def _is_users(place: str) -> bool:
    """Whether a file or folder belongs neither to Python nor to an installed package."""
    parts = place.split(os.sep)
    return (
        not any(name in parts for name in _INSTALLED)
        and not place.startswith(_library())
        and os.path.exists(place)
    )


@cache
def _library() -> tuple[str, ...]:
    """The folders of Python's own modules, with a separator behind each."""
    paths = sysconfig.get_paths()
    return tuple(os.path.join(paths[name], "") for name in ("stdlib", "platstdlib"))


def _beside(folder: str) -> Iterator[tuple[str, str]]:
    """The modules and packages in a script's folder, which a function may import later."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        name = entry.name.removesuffix(".py")
        if not name.isidentifier() or name in OWN_PACKAGES:
            continue
        module = entry.is_file() and entry.name.endswith(".py")
        if module or (entry.is_dir() and os.path.isfile(os.path.join(entry.path, "__init__.py"))):
            yield name, entry.path


def _sources(place: str) -> Iterator[str]:
    """The source files of a module or package."""
    if not os.path.isdir(place):
        yield place
        return
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(
            name
            for name in folders
            if name.isidentifier() and name != "__pycache__" and name not in _INSTALLED
        )
        yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))
