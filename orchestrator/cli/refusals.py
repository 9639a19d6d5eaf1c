"""Turns what jsonargparse says about a wrong command line into one sentence: what is wrong, and what is near.

jsonargparse lists every type that a value failed to be; what a person needs is the argument, the value, and
the name that was probably meant. The forms of its messages are known here and nowhere else; one that is not
known is passed on as it is, so that another version of it costs clarity, never the message.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from orchestrator.errors import suggest

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)', re.DOTALL)
_NOT_TAKEN = re.compile(
    r"Problem with given class_path '(?P<path>[^']+)':\s*Option '(?P<name>[^']+)' is not accepted"
)
_MISSING = re.compile(
    r"Problem with given class_path '(?P<path>[^']+)':\s*"
    r"the following arguments are required: (?P<names>[^\n]+)"
)
_PROBLEM = re.compile(r"Problem with given class_path '(?P<path>[^']+)':\s*(?P<why>[^\n]+)")
_NO_PATH = re.compile(r"Expected a dot import path string: (?P<word>[^\n]+)")
_TYPES = re.compile(r"Subtypes: \[(?P<types>[^\n]*)\]\n")
_EXPECTED = re.compile(r"Expected a (?P<type><class '[^']+'>)")
_VALUE = re.compile(r"Given value: (?P<value>.*)", re.DOTALL)
_GOT = re.compile(r"Got value: (?P<value>[^\n]+)")
_NEXT_TYPE = re.compile(r"\n    - ")
_OPTION = re.compile(r"does not accept option '(?P<key>[^']+)'|Key \"(?P<other>[^\"]+)\" is not expected")
_REQUIRED = re.compile(
    r"^the following arguments are required: (?:(?:fit|validate|test|predict)\.)?(?P<name>[^\n]+)"
)
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (?P<words>.*)", re.DOTALL)


def known_arguments(parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of a parser's arguments, as in ``trainer.max_epochs``."""
    return [
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and not option.endswith("+")
    ]


def explain(message: str, known: Iterable[str]) -> str:
    """Return `message` of jsonargparse in one sentence, with the nearest name where one is near.

    Args:
        message: What it says.
        known: The names of all arguments.

    >>> explain("unrecognized arguments: --modl.width 3", ["model.width"])
    "there is no argument --modl.width. Did you mean '--model.width'?"
    """
    known = list(known)
    if found := _UNRECOGNIZED.search(message):
        word = found["words"].split()[0]
        return _no_such_argument(word.partition("=")[0], known)
    if found := _OPTION.search(message):
        return _no_such_argument(f"--{found['key'] or found['other']}", known)
    if found := _REQUIRED.search(message):
        return f"--{found['name']} is missing. Give it on the command line or in a file (--config)."
    if found := _KEY.search(message):
        return _wrong_value(found["key"], found["rest"])
    return message


def _no_such_argument(word: str, known: list[str]) -> str:
    name = word.removeprefix("--")
    near = suggest(name, known)
    if not near:  # a longer name may hide how near its first part is
        near = suggest(name.partition(".")[0], {item.partition(".")[0] for item in known})
    hint = near.replace("mean '", "mean '--") if word.startswith("--") else near
    if not word.startswith("--"):
        return f"{word!r} is more than any argument takes. Write arguments as --name=value."
    return f"there is no argument {word}.{hint}"


def _wrong_value(key: str, rest: str) -> str:
    value = found["value"].strip() if (found := _VALUE.search(rest) or _GOT.search(rest)) else ""
    if found := _NOT_TAKEN.search(rest):
        hint = suggest(found["name"], _parameters_of(found["path"]))
        if "'init_args'" in value and "'class_path'" not in value:
            hint = " Say which class it is: class_path is missing."
        return f"--{key}: {found['path']} has no argument {found['name']!r}.{hint}"
    if found := _MISSING.search(rest):
        first = found["names"].split(",")[0].strip()
        needs = f"--{key}: {found['path']} needs {found['names']}."
        return f"{needs} Add --{key}.{first}=..., or init_args in a file."
    if found := _NO_PATH.search(rest):
        bases = list(_bases_in(rest))
        hint = suggest(found["word"], {name for base in bases for name in _names_below(base)})
        kind = " or ".join(base.__name__ for base in bases) or "class"
        return (
            f"--{key}={found['word']}: no {kind} is known by that name.{hint} "
            "Write the path of one that is not built in: package.module.Class."
        )
    if (found := _PROBLEM.search(rest)) and (inner := _KEY.search(rest, found.start("why"))):
        return _wrong_value(f"{key}.{inner['key']}", _NEXT_TYPE.split(inner["rest"])[0])
    if found := _PROBLEM.search(rest):
        path, _, last = found["path"].rpartition(".")
        hint = suggest(last, dir(sys.modules[path])) if path in sys.modules else ""
        return f"--{key}: {found['path']} cannot be used: {found['why'].rstrip('.')}.{hint}"
    types = _TYPES.search(rest)
    expected = [_short(item) for item in _EXPECTED.findall(rest)]
    if types is not None:
        expected = [_short(item) for item in re.split(r",\s(?![^\[]*\])", types["types"])]
    if expected and value:
        return f"--{key}={value} is not of the type {' or '.join(dict.fromkeys(expected))}."
    return f"--{key}: {rest.strip()}"


def _short(kind: str) -> str:
    """Return a type as people write it.

    >>> _short("<class 'int'>"), _short("<class 'NoneType'>")
    ('int', 'null')
    """
    inner = re.sub(r"<class '([^']+)'>", r"\1", kind)
    inner = re.sub(r"[\w.]+\.(\w+)", r"\1", inner)
    return "null" if inner == "NoneType" else inner


def _bases_in(text: str) -> Iterator[type]:
    """Yield the classes, of those that are imported, which a message names as wanted types."""
    found = _TYPES.search(text)
    seen = set()
    for path in re.findall(r"[\w.]+\.\w+", found["types"]) if found else []:
        module, _, name = path.rpartition(".")
        kind = getattr(sys.modules.get(module), name, None)
        if (
            isinstance(kind, type)
            and module.partition(".")[0] not in ("collections", "typing")
            and kind not in seen
        ):
            seen.add(kind)
            yield kind


def _names_below(base: type) -> Iterator[str]:
    kind: type
    for kind in base.__subclasses__():
        yield kind.__name__
        yield from _names_below(kind)


def _parameters_of(path: str) -> list[str]:
    """Return the names of the constructor's arguments of an imported class, or none."""
    module, _, name = path.rpartition(".")
    kind: Any = getattr(sys.modules.get(module), name, None)
    try:
        return list(inspect.signature(kind).parameters) if callable(kind) else []
    except (TypeError, ValueError):
        return []
