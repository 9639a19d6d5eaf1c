"""A hyperparameter sweep: the same training, many times, the bad ones stopped early, on Ray Tune.

A trial is ordinary code that builds a module and calls ``Trainer.fit``; or the sweep does both for a module's
class. The Trainer notices that it is in a trial, reports, and obeys. Everything of Tune works: search spaces,
schedulers, searchers; the result is Tune's own `ResultGrid`, and more. Trials take over each other's
processes, workers and data, and nothing else (`orchestrator.sweep.isolation`). A trial that fails does not
hurt others: its error is said once, with its configuration, and stands in the result.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from modules.module import LightningModule
from orchestrator import from_environment
from orchestrator.errors import MisconfigurationError, SweepError
from orchestrator.sweep.arguments import check_arguments
from orchestrator.sweep.module_training import ModuleTraining, module_training
from orchestrator.sweep.space import check_space, describe_space, grid_size, searched_names

if TYPE_CHECKING:
    from ray.tune import RunConfig, TuneConfig
    from ray.tune.schedulers import TrialScheduler

    from orchestrator.sweep.following import Display
    from orchestrator.sweep.records import TrialRecord
    from orchestrator.sweep.resources import TrialRoom
    from orchestrator.sweep.result import SweepResult


class Sweep:
    """Many trials of one training.

    Args:
        train: Called as ``train(config)`` in each trial; builds a module and calls ``Trainer.fit``. Or the
            class of a LightningModule, which takes its arguments from `space`.
        space: The search space: a dictionary of values and of Ray Tune's distributions, such as
            ``tune.loguniform``. With a module's class, the names of its arguments; ``trainer.NAME`` for the
            Trainer's; those that the module does not take may be the data module's, if that is a class.
        metric: What trials are compared by; the module logs it under this name.
        mode: ``"min"`` or ``"max"``.
        num_samples: Trials, or repetitions of a grid.
        scheduler: A Ray Tune scheduler such as `ASHAScheduler`, or ``"asha"``, ``"hyperband"``, ``"median"``,
            ``"bohb"``, ``"rungs"``; it counts reports: validations, else training epochs.
        search_alg: A Ray Tune searcher, or ``"optuna"``, ``"hyperopt"``, ``"bayesopt"``, ``"bohb"``, ...
        max_concurrent_trials: Trials at the same time; as many as fit when None.
        resources_per_trial: What a trial reserves: a dictionary like ``{"CPU": 1}`` for a trial in one
            process, or a `ray.train.ScalingConfig` for one on a group of workers. When None: one CPU, or with
            a module's class what `trainer` asks for.
        datamodule: With a module's class: a data module, of which each trial gets a copy, or its class.
        trainer: With a module's class: the Trainer's arguments.
        name: The sweep's directory in `storage_path`. The same sweep started again under its name goes on:
            the rest of its trials, those that failed, and more if `num_samples` has grown. When None:
            ``sweep_0``, ``sweep_1``, ...
        storage_path: A directory that all nodes share; ``sweeps`` in the working directory when None.
        save_checkpoints: Make a checkpoint at each report; a trial keeps its best and its last. Schedulers
            that pause or copy trials make theirs in any case.
        seed: Of random samples, and of each trial's random numbers; None for other ones each time.
        stop: When to end a trial or the sweep, as Ray Tune takes it: ``{"training_iteration": 10}``, a
            function of (trial, result), or a Stopper.
        time_budget_s: When to end the sweep.
        max_failures: How often a failed trial is tried again, from its last checkpoint; -1 for always.
        tune_config: A `ray.tune.TuneConfig`, instead of the arguments that it covers.
        run_config: A `ray.tune.RunConfig`, likewise.
        verbose: Say how the sweep comes along: a live table on a terminal, else a line as each trial ends;
            and at its end which trial is the best, and where the report lies.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        train: Callable[[dict[str, Any]], Any] | type[LightningModule],
        space: Mapping[str, Any],
        *,
        metric: str | None = None,
        mode: str = "min",
        num_samples: int = 1,
        scheduler: TrialScheduler | str | None = None,
        search_alg: Any = None,
        max_concurrent_trials: int | None = None,
        resources_per_trial: Any = None,
        datamodule: Any = None,
        trainer: Mapping[str, Any] | None = None,
        name: str | None = None,
        storage_path: str | os.PathLike[str] | None = None,
        save_checkpoints: bool = True,
        seed: int | None = 0,
        stop: Any = None,
        time_budget_s: float | timedelta | None = None,
        max_failures: int = 0,
        tune_config: TuneConfig | None = None,
        run_config: RunConfig | None = None,
        verbose: bool = True,
    ) -> None:
        given = {key: value for key, value in locals().items() if key != "self"}
        self.space = check_space(space)
        self.train: Callable[[dict[str, Any]], Any] = _training(train, self.space, datamodule, trainer)
        self.arguments = check_arguments(given, tune_config, run_config)
        self.room = _room(self.train, resources_per_trial)
        self.seed = seed
        self.save_checkpoints = save_checkpoints
        self.verbose = verbose
        if self.arguments.search_alg is not None or self.arguments.scheduler is not None:
            from orchestrator.sweep.algorithms import check_algorithms

            check_algorithms(self.arguments.search_alg, self.arguments.scheduler, self.space)

    def run(self) -> SweepResult:
        """Run all trials, or those that are left, and return Ray Tune's result with the best trial.

        Raises:
            MisconfigurationError: A trial can never fit, or the sweep's directory is another's.
            SweepError: All trials failed.
            KeyboardInterrupt: The user has interrupted; a sweep with a name can go on later.
        """
        from cluster import pool, session
        from cluster.serialization import dump
        from orchestrator.sweep.actor import TrialJob, trainable_for
        from orchestrator.sweep.algorithms import make_generator, make_scheduler
        from orchestrator.sweep.directory import Description, claim
        from orchestrator.sweep.following import Follower
        from orchestrator.sweep.records import read
        from orchestrator.sweep.resources import check_room, factory
        from orchestrator.sweep.tuning import run_trials

        arguments, name = self.arguments, getattr(self.train, "__name__", "trial")
        function = dump(self.train, "Sweep(train=...)")
        pool.end()  # its workers hold what trials need
        session.connect()
        check_room(self.room)
        scheduler = make_scheduler(arguments.scheduler)
        generator = make_generator(
            arguments.search_alg,
            self.space,
            num_samples=arguments.num_samples,
            max_concurrent=arguments.max_concurrent_trials,
            seed=self.seed,
            scheduler=scheduler,
        )
        total = arguments.num_samples * (1 if arguments.search_alg else grid_size(self.space))
        job = TrialJob(
            train=function,
            metric=arguments.metric,
            mode=arguments.mode,
            saves=self.save_checkpoints,
            seed=self.seed,
            num_workers=len(self.room.workers),
            resources_per_worker=dict(self.room.workers[0]) if self.room.workers else {},
            threads=self.room.threads,
            has_gpu=self.room.own.get("GPU", 0) > 0,
            folder=os.getcwd(),
            env=from_environment.sent_to_trials(os.environ),
        )
        description = Description(
            train=name,
            metric=arguments.metric,
            mode=arguments.mode,
            space=describe_space(self.space),
            seed=self.seed,
            searcher=_name_of(arguments.search_alg),
            scheduler=_name_of(arguments.scheduler),
        )
        with claim(arguments.storage_path, arguments.name, description) as claimed:
            display = self._display(total)
            follower = Follower(
                claimed.path,
                display,
                scheduler,
                metric=arguments.metric,
                mode=arguments.mode,
                on_workers=bool(self.room.workers),
            )
            try:
                grid = run_trials(
                    trainable_for(name, factory(self.room)),
                    job,
                    self.space,
                    arguments,
                    claimed,
                    follower,
                    generator=generator,
                    scheduler=scheduler,
                    saves=self.save_checkpoints,
                    first_number=len(read(claimed.path)),
                )
            except Exception:
                if follower.fatal is not None:
                    with contextlib.suppress(Exception):  # what goes wrong now must not hide the cause
                        self._write_pages(claimed.path)
                    raise SweepError(str(follower.fatal)) from None
                raise
            finally:
                display.close()
            return self._finish(grid, claimed.path)

    def _display(self, total: int) -> Display:
        """Return what shows the user how the sweep comes along."""
        from orchestrator.sweep.lines import Silence, TrialLines

        if not self.verbose:
            return Silence()
        names = searched_names(self.space)
        if sys.stderr.isatty():
            from orchestrator.sweep.live import TrialTable

            return TrialTable(self.arguments.metric, self.arguments.mode, names, total)
        return TrialLines(self.arguments.metric, names, total)

    def _write_pages(self, path: str) -> list[TrialRecord]:
        """Write the tables and the page about what has happened, and return the trials' records."""
        from orchestrator.sweep.records import read
        from orchestrator.sweep.report import write_report
        from orchestrator.sweep.tables import write_tables

        records = read(path)
        write_tables(path, records, self.arguments.metric, self.arguments.mode)
        try:
            write_report(path)
        except Exception as error:  # the results are worth more than their page
            warnings.warn(f"The page of the sweep in {path} was not written: {error!r}.", stacklevel=2)
        return records

    def _finish(self, grid: Any, path: str) -> SweepResult:
        """Write the tables and return the result."""
        from orchestrator.sweep.result import SweepResult

        records = self._write_pages(path)
        metric, mode = self.arguments.metric, self.arguments.mode
        if grid.num_errors == len(grid) > 0:
            first = next((record.error for record in records if record.error), "unknown")
            raise SweepError(
                f"All {len(grid)} trials failed, the first with: {first}. Their tracebacks are in {path}."
            )
        analysis = grid._experiment_analysis
        analysis.trials.sort(key=str)  # by number: a restored sweep has them in another order
        result = SweepResult(
            analysis,
            path=path,
            metric=metric,
            mode=mode,
            records=records,
            training=self.train,
        )
        if self.verbose:
            with contextlib.suppress(SweepError):  # who asks for the best trial is told that there is none
                print(result.describe(), flush=True)
        return result


def _training(
    train: Any, space: Mapping[str, Any], datamodule: Any, trainer: Mapping[str, Any] | None
) -> Callable[[dict[str, Any]], Any]:
    """Return what each trial calls."""
    if isinstance(train, type) and issubclass(train, LightningModule):
        return module_training(train, space, datamodule, trainer)
    if not callable(train):
        raise MisconfigurationError(
            f"Sweep(train={train!r}) is a {type(train).__name__}. Give a function train(config) that calls "
            "Trainer.fit, or the class of a LightningModule."
        )
    for name, value in (("datamodule", datamodule), ("trainer", trainer)):
        if value is not None:
            raise MisconfigurationError(
                f"Sweep({name}=...) goes with the class of a LightningModule, and train is a function, which "
                "makes its own. Use it there."
            )
    _check_signature(train, space)
    found: Callable[[dict[str, Any]], Any] = train
    return found


def _check_signature(train: Callable[..., Any], space: Mapping[str, Any]) -> None:
    """Refuse a function that wants its settings one by one, or cannot be called with one argument.

    Raises:
        MisconfigurationError: It does.
    """
    try:
        signature = inspect.signature(train)
    except (TypeError, ValueError):  # of some built-in functions nobody knows
        return
    name = getattr(train, "__name__", repr(train))
    advice = f"Write def {name}(config): and take config['{next(iter(space), 'lr')}'] there."
    try:
        signature.bind({})
    except TypeError as error:
        raise MisconfigurationError(
            f"Sweep calls {name}(config) with one dict of all settings, and {name}{signature} cannot be "
            f"called so: {error}. {advice}"
        ) from None
    first = next(iter(signature.parameters), "")
    if first in space:
        raise MisconfigurationError(
            f"Sweep calls {name}(config) with one dict of all settings, and {name}{signature} takes "
            f"{first!r}, a name of the space, for itself. {advice}"
        )


def _room(train: object, resources_per_trial: Any) -> TrialRoom:
    """Return what a trial reserves; the arguments of a module's Trainer are checked on the way."""
    from orchestrator.sweep.resources import parse_resources, room_of

    if not isinstance(train, ModuleTraining):
        return parse_resources(resources_per_trial)
    from orchestrator.trainer import Trainer

    options = dict(train.trainer)
    gpus = 1.0 if options.get("accelerator") in ("gpu", "cuda") and options.get("devices", 1) == 1 else 0.0
    if gpus:  # the driver need not see the GPU that a trial will have
        options["accelerator"] = "cpu"
    plan = Trainer(**{"accelerator": "cpu", **options}).plan
    if resources_per_trial is None:
        return room_of(plan.group, options.get("threads_per_worker"), gpus=gpus)
    room: TrialRoom = parse_resources(resources_per_trial)
    wanted = plan.num_workers if plan.on_group else 0
    if len(room.workers) not in (wanted, plan.num_workers):  # one worker may train here, or on its own
        raise MisconfigurationError(
            f"Sweep(resources_per_trial=...) reserves {len(room.workers)} workers for each trial, and "
            f"Sweep(trainer=...) asks for {wanted}. Leave resources_per_trial out, or make them agree."
        )
    return room


def _name_of(algorithm: Any) -> str:
    if algorithm is None:
        return ""
    return algorithm if isinstance(algorithm, str) else type(algorithm).__name__
