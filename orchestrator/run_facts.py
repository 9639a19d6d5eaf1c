"""What a run was made of, as plain values: versions, machine, code, hyperparameters; and how two runs differ.

Looking starts no process and loads nothing that is not loaded already. Nothing here is a secret: of the
environment only variables that are named here are taken. What cannot be found out is left out. Values that
JSON does not have become their text, cut short.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.settings import Settings

_PACKAGES = ("torch", "ray", "numpy", "pyarrow", "lightning")
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "ORCHESTRATOR_GLOBAL_SEED",
    "PYTHONHASHSEED",
    "SLURM_JOB_ID",
)
_LONGEST = 300
_DEEPEST = 6


def environment() -> dict[str, Any]:
    """Return what the run stands on: machine, versions, and the variables that change what is computed."""
    import torch

    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "versions": dict(_versions()),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    from orchestrator import __version__

    found = [("orchestrator", __version__), ("python", platform.python_version())]
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append((name, importlib.metadata.version(name)))
    return tuple(found)


def code(module: object) -> dict[str, Any]:
    """Return what was run: script and arguments, the module's class, hashes of both files, the commit.

    Args:
        module: The module that is trained.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    source = None
    with contextlib.suppress(TypeError, OSError):
        source = inspect.getsourcefile(type(module))
    found: dict[str, Any] = {
        "script": None if script is None else os.path.abspath(script),
        "arguments": sys.argv[1:],
        "folder": os.getcwd(),
        "module": f"{type(module).__module__}.{type(module).__qualname__}",
        "script_sha256": _hash(script),
        "module_sha256": _hash(source),
    }
    place = source or script
    found["commit"] = commit_of(Path(place).resolve().parent) if place else None
    return {name: value for name, value in found.items() if value is not None}


def _hash(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def commit_of(folder: Path) -> str | None:
    """Return the commit that a folder's Git repository stands at, read from its files; None without one."""
    for place in (folder, *folder.parents):
        git = place / ".git"
        with contextlib.suppress(OSError, ValueError, IndexError):
            if git.is_file():  # a worktree: a file that names the folder
                git = (place / git.read_text(encoding="utf-8").split(":", 1)[1].strip()).resolve()
            if not git.is_dir():
                continue
            head = (git / "HEAD").read_text(encoding="utf-8").strip()
            return head if not head.startswith("ref: ") else _resolve(git, head[5:])
    return None


def _resolve(git: Path, name: str) -> str | None:
    """Return the commit of a branch, from its own file or from those that Git has packed."""
    common = git
    with contextlib.suppress(OSError):
        common = (git / (git / "commondir").read_text(encoding="utf-8").strip()).resolve()
    for place in (git, common):
        with contextlib.suppress(OSError):
            return (place / name).read_text(encoding="utf-8").strip()
    with contextlib.suppress(OSError):
        for line in (common / "packed-refs").read_text(encoding="utf-8").splitlines():
            found, _, ref = line.partition(" ")
            if ref == name:
                return found
    return None


def hyperparameters(module: object, datamodule: object | None) -> dict[str, Any]:
    """Return the hyperparameters that module and data module have saved."""
    found: dict[str, Any] = {}
    for owner in (datamodule, module):
        with contextlib.suppress(Exception):  # a module without them, or of another framework
            found |= dict(getattr(owner, "hparams_initial", {}))
    return {str(name): plain(value) for name, value in found.items()}


def arguments(settings: Settings) -> dict[str, Any]:
    """Return the Trainer's arguments that are not what they would be if nobody had said anything."""
    return {
        field.name: plain(getattr(settings, field.name))
        for field in fields(settings)
        if getattr(settings, field.name) != field.default
    }


def plain(value: Any, depth: int = 0) -> Any:
    """Return `value` as JSON can hold it; what it cannot becomes its text.

    >>> plain({"lr": 1e-3, "sizes": (1, 2), "none": None, "bad": float("nan")})
    {'lr': 0.001, 'sizes': [1, 2], 'none': None, 'bad': 'nan'}
    """
    if value is None or isinstance(value, (bool, str)):
        return value if not isinstance(value, str) else value[:_LONGEST]
    if isinstance(value, (int, float)):
        number = int(value) if isinstance(value, int) else float(value)
        return number if math.isfinite(number) else str(number)
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {str(name): plain(item, depth + 1) for name, item in value.items()}
    if depth < _DEEPEST and isinstance(value, (list, tuple)) and len(value) <= _LONGEST:
        return [plain(item, depth + 1) for item in value]
    try:
        return repr(value)[:_LONGEST]
    except Exception:
        return f"<{type(value).__qualname__}>"


def numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics as plain numbers; one that is not finite as a word."""
    return {name: plain(float(value)) for name, value in metrics.items()}


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], path: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Return what two plain dictionaries say differently, by dotted name: both values, None for no value.

    >>> differences({"lr": 0.1, "net": {"width": 8}}, {"lr": 0.1, "net": {"width": 16}, "seed": 7})
    {'net.width': (8, 16), 'seed': (None, 7)}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*one, *other]):
        left, right = one.get(name), other.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found |= differences(left, right, f"{path}{name}.")
        elif left != right:
            found[f"{path}{name}"] = (left, right)
    return found
