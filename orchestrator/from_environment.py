"""Arguments of the Trainer from the environment: ``ORCHESTRATOR_TRAINER_MAX_EPOCHS=3`` stands for
``Trainer(max_epochs=3)``.

Read in the process that makes the Trainer, at that moment, and nowhere else. What the script says wins. A
value is read as the argument's type; a variable of which nothing can be made, or of no argument, is refused
by its name, so that a slip of the pen is not a run with other settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from cluster.environment import ASKED, chosen
from modules.rng import SEED_VARIABLES
from orchestrator.errors import MisconfigurationError, suggest

PREFIX = "ORCHESTRATOR_TRAINER_"
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_READABLE = frozenset({"bool", "int", "float", "str", "dict", "list", "None"})


def read(environment: Mapping[str, str], annotations: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments that the environment gives.

    Args:
        environment: Variables by name.
        annotations: The Trainer's arguments, with their types as they are written.

    Raises:
        MisconfigurationError: A variable with the prefix names no argument, or one that no text can stand
            for, or its text is not of the argument's type.
    """
    found = {}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in annotations:
            hint = suggest(name, annotations)
            raise MisconfigurationError(
                f"{variable} is set, and Trainer has no argument {name!r}.{hint} Unset the variable."
            )
        found[name] = parse(variable, environment[variable], annotations[name])
    return found


def sent_to_trials(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a sweep's trials get of the driver's environment: what workers get, which of it their
    own workers are to get, the seed of `seed_everything`, and the arguments of Trainers.

    >>> sent_to_trials({"WANDB_MODE": "offline", "HOME": "/root", "ORCHESTRATOR_TRAINER_DEVICES": "2"})
    {'WANDB_MODE': 'offline', 'ORCHESTRATOR_TRAINER_DEVICES': '2'}
    """
    return {**chosen(environment), **{name: environment[name] for name in environment if _is_of_driver(name)}}


def drop_stale() -> None:
    """Remove the variables that trials get from the driver: those here are of Ray's start."""
    for name in [name for name in os.environ if _is_of_driver(name)]:
        del os.environ[name]


def _is_of_driver(name: str) -> bool:
    return name.startswith(PREFIX) or name in (ASKED, *SEED_VARIABLES)


def parse(variable: str, text: str, annotation: str) -> Any:
    """Return `text` as a value of the type that `annotation` writes, such as ``int | str | None``.

    Raises:
        MisconfigurationError: It is none.
    """
    kinds = [part.strip().partition("[")[0] for part in _alternatives(annotation)]
    readable = [kind for kind in kinds if kind in _READABLE]
    if not set(readable) - {"None"}:
        raise MisconfigurationError(
            f"{variable}={text!r}: this argument takes objects ({annotation}), which a variable cannot "
            "hold. Give it in the script."
        )
    word = text.strip()
    if "None" in readable and word.lower() in ("none", "null"):
        return None
    if "bool" in readable and word.lower() in _TRUTH:
        return _TRUTH[word.lower()]
    for kind, convert in (("int", int), ("float", float)):
        if kind in readable:
            try:
                return convert(word)
            except ValueError:
                pass
    if readable == ["bool"] and word in ("0", "1"):
        return word == "1"
    for kind, start in (("dict", "{"), ("list", "[")):
        if kind in readable and word.startswith(start):
            try:
                return json.loads(word)
            except json.JSONDecodeError:
                break
    if "str" in readable:
        return text
    raise MisconfigurationError(
        f"{variable}={text!r} is not of the type {_words(readable)}. Correct or unset it."
    )


def naming(error: MisconfigurationError, taken: Mapping[str, Any]) -> MisconfigurationError:
    """Return `error`, naming the variables that the arguments which it speaks of came from."""
    blamed = [f"{PREFIX}{name.upper()}" for name in taken if f"{name}=" in str(error)]
    if not blamed:
        return error
    verb = "comes" if len(blamed) == 1 else "come"
    return MisconfigurationError(f"{error} ({' and '.join(blamed)} {verb} from the environment.)")


def _alternatives(annotation: str) -> list[str]:
    """Return the parts of a union as it is written, leaving those within brackets alone."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(annotation):
        depth += (character == "[") - (character == "]")
        if character == "|" and not depth:
            parts.append(annotation[start:place])
            start = place + 1
    return [*parts, annotation[start:]]


def _words(kinds: list[str]) -> str:
    names = {"dict": "dict (as JSON)", "list": "list (as JSON)", "bool": "bool (true or false)"}
    return " or ".join(names.get(kind, kind) for kind in kinds)
