"""An older form: the Trainer's arguments on a script's command line, by `argparse`.

``Trainer.add_argparse_args(parser)`` adds an option for each argument that a text can stand for, and
``Trainer.from_argparse_args(args)`` makes a Trainer of what was given, passing over what is
not the Trainer's. Both say once what to write today. A text that is not of the argument's type is the
parser's own error.
"""

from __future__ import annotations

import argparse
import functools
import inspect
from typing import Any, Self

from orchestrator import from_environment, legacy
from orchestrator.errors import MisconfigurationError

_OLDER = {"gpus": "int | str | None", "num_processes": "int | None", "resume_from_checkpoint": "str | None"}


class ArgparseForm:
    """The two class methods; the Trainer has them."""

    @classmethod
    def add_argparse_args(cls, parent_parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add the Trainer's arguments to `parent_parser`, and return it."""
        legacy.tell("Trainer.add_argparse_args", "Add the options that the script needs itself.", 2)
        group = parent_parser.add_argument_group("Trainer")
        taken = parent_parser._option_string_actions
        for name, (kind, default) in {
            **_arguments(cls),
            **{old: (_OLDER[old], None) for old in _OLDER},
        }.items():
            if f"--{name}" in taken:
                continue
            try:
                from_environment.parse(name, "None", kind)
            except MisconfigurationError as error:
                if "takes objects" in str(error):
                    continue
            convert = functools.partial(_read, name, kind)
            alone: dict[str, Any] = {"nargs": "?", "const": True} if "bool" in kind else {}
            group.add_argument(f"--{name}", type=convert, default=default, metavar=kind, **alone)
        return parent_parser

    @classmethod
    def from_argparse_args(cls, args: argparse.Namespace | argparse.ArgumentParser, **given: Any) -> Self:
        """Return a Trainer of what is in `args` and differs from its default; `given` arguments win."""
        legacy.tell("Trainer.from_argparse_args", "Write Trainer(max_epochs=args.max_epochs, ...).", 2)
        found = args.parse_args() if isinstance(args, argparse.ArgumentParser) else args
        known = _arguments(cls)
        taken = {
            name: value
            for name, value in vars(found).items()
            if (name in known and value != known[name][1]) or (name in _OLDER and value is not None)
        }
        return cls(**{**taken, **given})


def _arguments(trainer: type) -> dict[str, tuple[str, Any]]:
    """Return the constructor's arguments: how each is annotated, and its default."""
    parameters = inspect.signature(trainer).parameters.values()
    return {
        item.name: (str(item.annotation), item.default)
        for item in parameters
        if item.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _read(name: str, kind: str, text: str) -> Any:
    try:
        return from_environment.parse(f"--{name}", text, kind)
    except MisconfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
