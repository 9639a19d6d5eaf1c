"""Environment variables as arguments of the command line: ``ORCHESTRATOR_FIT__MODEL__WIDTH=64`` stands for
``orchestrator fit --model.width=64``.

The name is the prefix, the subcommand where there are any, and the argument, with ``__`` for each dot. The
variables come before what is typed, so a file or an option on the command line wins over them; they may name
a file themselves (``ORCHESTRATOR_FIT__CONFIG``). A variable that names no argument is refused like an option
that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "ORCHESTRATOR"


def find(
    environment: Mapping[str, str], prefix: str, subcommand: str | None, has_subcommands: bool = True
) -> dict[str, tuple[str, str]]:
    """Return the arguments that the environment gives: name and value by variable.

    Args:
        environment: Variables by name.
        prefix: What the names of our variables start with, before ``_``.
        subcommand: The subcommand that runs.
        has_subcommands: Whether there are any; without one of them, nothing is read then.

    >>> find({"ORCHESTRATOR_FIT__MODEL__WIDTH": "64", "HOME": "/"}, "ORCHESTRATOR", "fit")
    {'ORCHESTRATOR_FIT__MODEL__WIDTH': ('model.width', '64')}
    """
    if has_subcommands and subcommand is None:
        return {}
    start = f"{prefix}_{subcommand}__".upper() if subcommand else f"{prefix}_".upper()
    trainers = f"{prefix}_trainer_".upper()
    # The Trainer's own variables, ORCHESTRATOR_TRAINER_MAX_EPOCHS, are defaults, and checked elsewhere.
    return {
        variable: (variable.removeprefix(start).lower().replace("__", "."), value)
        for variable, value in environment.items()
        if variable.startswith(start) and not variable.startswith(trainers)
    }


def as_arguments(found: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return what `find` found as words of a command line: a file first, each class before its arguments.

    >>> as_arguments({"A": ("model.width", "64"), "B": ("model", "MLP")})
    ['--model=MLP', '--model.width=64']
    """
    order = sorted(found.values(), key=lambda item: (item[0] != "config", item[0].count("."), item[0]))
    return [f"--{name}={value}" for name, value in order]
