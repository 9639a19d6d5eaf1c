"""``orchestrator fit|validate|test|predict``: trains any module on any data, named on the command line or in
a file.

``orchestrator fit --model=MLPClassifier --data=Spirals`` needs no code; ``--model=train.Net`` takes the class
from the user's ``train.py`` in the working directory. It is `LightningCLI` without a script, so a script is
the other way to the same result. What a person has to correct is one line on standard error: status 2 where
arguments cannot work, 1 where processes or the cluster failed. An exception of the user's own code keeps its
traceback, and status 1. Ctrl-C is status 130.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

SUMMARIES = {
    "fit": "train a module",
    "validate": "evaluate a module on validation data",
    "test": "evaluate a module on test data",
    "predict": "predict with a module",
}


def run(argv: Sequence[str]) -> int:
    """Run the command that `argv` begins with, and return the exit status."""
    from orchestrator._shadowing import check_for_shadowed_packages

    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        check_for_shadowed_packages()
    except ImportError as error:
        return _refuse(argv[0], error, 2)
    import modules.models  # noqa: F401  so that ready modules are known by name
    from cluster.errors import ClusterError
    from orchestrator.cli.lightning_cli import LightningCLI

    try:
        LightningCLI(args=list(argv), parser_kwargs={"prog": "orchestrator", "default_env": True})
    except KeyboardInterrupt:
        return _refuse(argv[0], "interrupted.", 130)
    except (ClusterError, ValueError, TypeError, OSError, RuntimeError) as error:
        if _passed_through_users_code(error):
            raise
        return _refuse(argv[0], error, 1 if isinstance(error, ClusterError) else 2)
    return 0


def _passed_through_users_code(error: BaseException) -> bool:
    """Whether code other than this project's, the parser's and torch's was running, here or on a worker."""
    import jsonargparse
    import torch

    import orchestrator

    roots = [
        str(Path(orchestrator.__file__).parents[1] / name) for name in ("orchestrator", "modules", "cluster")
    ]
    roots += [str(Path(str(package.__file__)).parent) for package in (jsonargparse, torch)]
    frames = traceback.extract_tb(error.__traceback__)
    first = next(place for place, frame in enumerate(frames) if frame.filename == __file__)
    strange = [frame for frame in frames[first:] if not frame.filename.startswith(tuple(roots))]
    return bool(strange or getattr(error, "__notes__", ()))


def _refuse(command: str, why: object, status: int) -> int:
    print(f"orchestrator {command}: {why}", file=sys.stderr)
    return status
