"""A sweep's directory: which sweep it belongs to, whether that goes on, and that only one writes into it.

``sweep.json`` says what the sweep is. The same sweep started again under its name goes on where it was: the
rest of its trials, those that failed, or, when more samples are asked for, the new ones. Another sweep is
refused, with what differs. While a sweep runs it holds a lock on the directory, which ends with its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.errors import MisconfigurationError

FILE = "sweep.json"
_LOCK = ".sweep.lock"
_ADVICE = "Choose another name, or remove the directory."


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What tells one sweep from another.

    Attributes:
        train: Name of the user's function or module.
        metric: What trials are compared by.
        mode: ``"min"`` or ``"max"``.
        space: As `orchestrator.sweep.space.describe_space` gives it.
        seed: Of samples and trials.
        searcher: Class of the searcher.
        scheduler: Class of the scheduler.
    """

    train: str
    metric: str
    mode: str
    space: Mapping[str, str]
    seed: int | None
    searcher: str
    scheduler: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A directory that this process may write into.

    Attributes:
        path: Of the directory.
        name: Its last part.
        goes_on: The sweep has been begun here before.
    """

    path: str
    name: str
    goes_on: bool


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return what tells two descriptions apart, in words. Pure.

    >>> differences({"metric": "loss", "mode": "min"}, {"metric": "acc", "mode": "min"})
    ["metric was 'loss', is 'acc'"]
    """
    return [
        f"{name} was {found.get(name)!r}, is {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]


@contextlib.contextmanager
def claim(storage_path: str, name: str | None, description: Description) -> Iterator[Claim]:
    """Make the sweep's directory, or take it up again, and hold it for the block.

    Args:
        storage_path: Where sweeps are kept.
        name: The directory's name; ``sweep_0``, ``sweep_1``, ... when None, whichever is the first free.
        description: What the sweep is.

    Raises:
        MisconfigurationError: The directory belongs to another sweep, or another process writes into it.
    """
    path = _new_directory(storage_path) if name is None else os.path.join(storage_path, name)
    os.makedirs(path, exist_ok=True)
    wanted = json.loads(json.dumps(asdict(description)))
    with _held(path):
        found = _read(path)
        others = [entry for entry in os.listdir(path) if entry not in (_LOCK, FILE)]
        if found is None and others:
            raise MisconfigurationError(
                f"Sweep(name={name!r}): {path} holds files that are no sweep's ({sorted(others)[0]}, "
                f"...). {_ADVICE}"
            )
        if found is not None and (different := differences(found, wanted)):
            raise MisconfigurationError(
                f"Sweep(name={name!r}): {path} holds another sweep: {'; '.join(different)}. {_ADVICE}"
            )
        if found is None:
            _write(path, wanted)
        yield Claim(path=path, name=os.path.basename(path), goes_on=found is not None)


def _new_directory(storage_path: str) -> str:
    number = 0
    while True:
        path = os.path.join(storage_path, f"sweep_{number}")
        try:
            os.makedirs(path)
        except FileExistsError:
            number += 1
            continue
        return path


@contextlib.contextmanager
def _held(path: str) -> Iterator[None]:
    """Hold the directory's lock; the system lets it go when the process ends, however it does."""
    lock = os.path.join(path, _LOCK)
    with open(lock, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise MisconfigurationError(
                f"Sweep(name={os.path.basename(path)!r}): process {file.read().strip() or '?'} is "
                "writing a sweep "
                f"into {path}. Wait for it, or choose another name."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        os.remove(lock)


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(path, FILE), encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found


def _write(path: str, content: Mapping[str, Any]) -> None:
    temporary = os.path.join(path, f".{FILE}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    os.replace(temporary, os.path.join(path, FILE))
