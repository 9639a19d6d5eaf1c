"""``orchestrator sweep --config sweep.yaml``: searches hyperparameters without a script.

The file names a module, its data, the space and what `Sweep` takes. A distribution is written as Ray Tune
calls it: ``lr: {loguniform: [1.0e-4, 1.0e-1]}``; a plain value is the same in all trials. The same command
goes on with a sweep that was broken off, if it has a name. ``--report FOLDER`` writes a sweep's page again. A
mistake in the file is one line on standard error and status 2, before anything starts; failed trials give
status 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

SUMMARY = "search hyperparameters"

DISTRIBUTIONS = (
    "choice", "grid_search", "loguniform", "lograndint", "qloguniform", "qlograndint", "qrandint", "qrandn",
    "quniform", "randint", "randn", "uniform",
)  # fmt: skip
_OWN = ("model", "data", "space")
_TAKEN = (
    "max_concurrent_trials", "max_failures", "metric", "mode", "name", "num_samples", "resources_per_trial",
    "save_checkpoints", "scheduler", "search_alg", "seed", "stop", "storage_path", "time_budget_s", "trainer",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config``, what may stand beside it, and ``--report``."""
    parser.add_argument("--config", metavar="FILE", help="YAML file: model, data, space, metric, ...")
    parser.add_argument("--name", help="the sweep's directory; the same sweep under its name goes on")
    parser.add_argument("--num-samples", type=int, metavar="N", help="trials, or repetitions of a grid")
    parser.add_argument("--storage-path", metavar="FOLDER", help="where sweeps are kept")
    parser.add_argument("--report", metavar="FOLDER", help="write a sweep's report.html again, and end")


def run(arguments: argparse.Namespace) -> int:
    """Run the sweep and print its best trial; return 0, 1 when trials failed, 2 for what cannot work."""
    from cluster.errors import ClusterError
    from orchestrator.errors import MisconfigurationError, SweepError

    try:
        if arguments.report is not None:
            from orchestrator.sweep.report import write_report

            print(write_report(arguments.report))
            return 0
        if arguments.config is None:
            raise MisconfigurationError("there is no --config. Name a YAML file, or --report FOLDER.")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        overrides = {name: getattr(arguments, name) for name in ("name", "num_samples", "storage_path")}
        sweep = make_sweep(read_config(arguments.config), overrides)
    except (MisconfigurationError, OSError) as error:
        print(f"orchestrator sweep: {error}", file=sys.stderr)
        return 2
    try:
        result = sweep.run()
        told = result.describe()
    except MisconfigurationError as error:
        print(f"orchestrator sweep: {error}", file=sys.stderr)
        return 2
    except (SweepError, ClusterError) as error:
        print(f"orchestrator sweep: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"orchestrator sweep: {interrupt or 'interrupted.'}", file=sys.stderr)
        return 130
    if not sweep.verbose:  # else it has said so itself
        print(told)
    return 1 if result.num_errors else 0


def read_config(path: str) -> dict[str, Any]:
    """Return what a YAML file says.

    Raises:
        MisconfigurationError: It is no YAML, or no mapping.
        OSError: It cannot be read.
    """
    import yaml

    from orchestrator.errors import MisconfigurationError

    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise MisconfigurationError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise MisconfigurationError(f"{path} holds no settings. Write model, space and metric.")
    return dict(content)


def make_sweep(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:
    """Return the `Sweep` that a file describes.

    Args:
        config: What the file says.
        overrides: What the command line says instead; None for nothing.

    Raises:
        MisconfigurationError: Something in it cannot work.
    """
    from orchestrator.errors import MisconfigurationError, suggest
    from orchestrator.sweep.sweep import Sweep

    for name in config:
        if name not in (*_OWN, *_TAKEN):
            raise MisconfigurationError(
                f"there is no setting {name!r}.{suggest(name, (*_OWN, *_TAKEN))} There are "
                f"{', '.join(sorted((*_OWN, *_TAKEN)))}."
            )
    for name in ("model", "space"):
        if name not in config:
            raise MisconfigurationError(f"the file lacks {name!r}. Add it.")
    given = {name: config[name] for name in _TAKEN if name in config}
    given.update({name: value for name, value in overrides.items() if value is not None})
    if isinstance(given.get("scheduler"), Mapping):
        given["scheduler"] = _make("scheduler", given["scheduler"])
    data, datamodule = config.get("data"), None
    if isinstance(data, Mapping):
        made, arguments = find_class("data", str(data.get("class_path"))), data.get("init_args") or {}
        datamodule = made(**arguments)
    elif data is not None:
        datamodule = find_class("data", str(data))
    return Sweep(
        find_class("model", str(config["model"])),
        parse_space(config["space"]),
        datamodule=datamodule,
        **given,
    )


def parse_space(space: Any) -> dict[str, Any]:
    """Return a search space from its form in a file.

    Raises:
        MisconfigurationError: It is no mapping, or a distribution does not take its arguments.
    """
    from orchestrator.errors import MisconfigurationError

    if not isinstance(space, Mapping):
        raise MisconfigurationError(f"space is {space!r}. Write names with values or distributions.")
    return {str(name): _value(str(name), value) for name, value in space.items()}


def find_class(setting: str, path: str) -> type:
    """Return a class by ``package.module.Class``, or one of `modules.models` by its name.

    Raises:
        MisconfigurationError: There is none.
    """
    from modules import models
    from orchestrator.errors import MisconfigurationError, suggest

    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module) if module else models, name)
    except (ImportError, AttributeError) as error:
        known = "" if module else f"{suggest(name, models.__all__)} There are {', '.join(models.__all__)};"
        raise MisconfigurationError(
            f"{setting}: {path} is not found: {error}.{known} write package.module.Class for your own."
        ) from None
    if not isinstance(found, type):
        raise MisconfigurationError(f"{setting}: {path} is no class. Name a class.")
    return found


def _value(name: str, value: Any) -> Any:
    """Return one part of a space: a distribution, a space of its own, or a plain value."""
    from ray import tune

    from orchestrator.errors import MisconfigurationError, suggest

    if not isinstance(value, Mapping):
        return value
    if len(value) == 1:
        kind, arguments = next(iter(value.items()))
        if kind in DISTRIBUTIONS:
            try:
                make = getattr(tune, kind)
                if kind in ("choice", "grid_search"):
                    return make(arguments)
                return make(**arguments) if isinstance(arguments, Mapping) else make(*arguments)
            except (TypeError, ValueError) as error:
                raise MisconfigurationError(f"space: {name}: {kind} of {arguments!r}: {error}.") from None
        if isinstance(arguments, list) and (near := suggest(kind, DISTRIBUTIONS)):
            raise MisconfigurationError(f"space: {name}: there is no distribution {kind!r}.{near}")
    return {str(key): _value(f"{name}/{key}", held) for key, held in value.items()}


def _make(setting: str, wanted: Mapping[str, Any]) -> Any:
    """Return a scheduler that is written as its name with its arguments."""
    from orchestrator.errors import MisconfigurationError
    from orchestrator.sweep.algorithms import scheduler_class

    if len(wanted) != 1:
        raise MisconfigurationError(
            f"{setting}: {dict(wanted)!r}. Write one name with its arguments: asha: {{max_t: 5}}."
        )
    name, arguments = next(iter(wanted.items()))
    try:
        return scheduler_class(str(name))(**(arguments or {}))
    except TypeError as error:
        raise MisconfigurationError(f"{setting}: {name}: {error}.") from None
