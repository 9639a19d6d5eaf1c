"""A hyperparameter sweep: the same training, many times, the bad ones stopped early, on Ray Tune.

A trial is ordinary code that builds a module and calls ``Trainer.fit``. The Trainer notices that it is in a
trial, reports, and obeys. Everything of Tune works: search spaces, schedulers, searchers; the result is
Tune's own `ResultGrid`. A trial that fails does not hurt others: its error is said once, with its
configuration, and stands in the result.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import MisconfigurationError, SweepError, suggest
from orchestrator.stops import Preempted
from orchestrator.sweep.stopped import TrialStopped

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory, ResultGrid
    from ray.tune.schedulers import TrialScheduler

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # tables that name directories which are gone afterwards
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class Sweep:
    """Many trials of one training.

    Args:
        train: Called as ``train(config)`` in each trial; builds a module and calls ``Trainer.fit``.
        space: The search space: a dictionary of values and of Ray Tune's distributions, such as
            ``tune.loguniform``.
        metric: What trials are compared by; the module logs it under this name.
        mode: ``"min"`` or ``"max"``.
        num_samples: Trials, or repetitions of a grid.
        scheduler: A Ray Tune scheduler such as `ASHAScheduler`; it counts reports: validations, else training
            epochs.
        search_alg: A Ray Tune searcher.
        max_concurrent_trials: Trials at the same time; as many as fit when None.
        resources_per_trial: What a trial reserves: a dictionary like ``{"CPU": 1}`` for a trial in one
            process, or a `ray.train.ScalingConfig` for one on a group of workers. One CPU when None.
        name: The sweep's directory in `storage_path`; ``sweep_0``, ``sweep_1``, ... when None.
        storage_path: A local directory; ``sweeps`` in the working directory when None.
        save_checkpoints: Add a checkpoint to each report, so that results have ``checkpoint``.
        verbose: Say a line as each trial ends.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        train: Callable[[dict[str, Any]], Any],
        space: Mapping[str, Any],
        *,
        metric: str,
        mode: str = "min",
        num_samples: int = 1,
        scheduler: TrialScheduler | None = None,
        search_alg: Any = None,
        max_concurrent_trials: int | None = None,
        resources_per_trial: Any = None,
        name: str | None = None,
        storage_path: str | os.PathLike[str] | None = None,
        save_checkpoints: bool = True,
        verbose: bool = True,
    ) -> None:
        if not callable(train):
            raise MisconfigurationError(
                f"Sweep(train={train!r}) is a {type(train).__name__}. Give a function train(config) that "
                "calls Trainer.fit."
            )
        if not isinstance(space, Mapping) or not all(isinstance(key, str) for key in space):
            raise MisconfigurationError(
                f"Sweep(space={space!r}) is not a search space. Use a dictionary from names to values and "
                "distributions."
            )
        if not isinstance(metric, str) or not metric:
            raise MisconfigurationError(f"Sweep(metric={metric!r}). Name a metric that the module logs.")
        if mode not in ("min", "max"):
            raise MisconfigurationError(
                f"Sweep(mode={mode!r}) is unknown.{suggest(mode, ('min', 'max'))} Use 'min' or 'max'."
            )
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise MisconfigurationError(
                f"Sweep(num_samples={num_samples!r}). Use a whole number of at least 1."
            )
        self.train = train
        self.space = dict(space)
        self.metric = metric
        self.mode = mode
        self.num_samples = num_samples
        self.scheduler = scheduler
        self.search_alg = search_alg
        self.max_concurrent_trials = max_concurrent_trials
        self.resources_per_trial = resources_per_trial
        self.name = name
        self.storage_path = os.path.abspath(os.path.expanduser(os.fspath(storage_path or "sweeps")))
        self.save_checkpoints = save_checkpoints
        self.verbose = verbose

    def run(self) -> ResultGrid:
        """Run all trials and return Ray Tune's result.

        Raises:
            MisconfigurationError: A trial can never fit, or the sweep's directory is in use.
            SweepError: All trials failed.
        """
        from cluster import pool, session

        pool.end()  # its workers hold what trials need
        session.connect()
        from ray import tune

        from orchestrator.sweep.lines import TrialLines

        resources, workers = _resources(self.resources_per_trial)
        per_worker = dict(resources.bundles[-1]) if workers else {}
        _check_room(resources)
        name = self._claim_directory()
        tuner = tune.Tuner(
            tune.with_resources(self._trainable(workers, per_worker), resources),
            param_space=self.space,
            tune_config=tune.TuneConfig(
                metric=self.metric,
                mode=self.mode,
                num_samples=self.num_samples,
                scheduler=self.scheduler,
                search_alg=self.search_alg,
                max_concurrent_trials=self.max_concurrent_trials,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=self.storage_path,
                verbose=0,
                callbacks=[TrialLines(self.metric, list(self.space))] if self.verbose else None,
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute=self.metric, checkpoint_score_order=self.mode
                )
                if self.save_checkpoints
                else None,
            ),
        )
        with _quiet():
            result = tuner.fit()
        if result.num_errors == len(result) > 0:
            first = str(result.errors[0]).strip().splitlines()[-1]
            raise SweepError(
                f"All {len(result)} trials failed, the first with: {first}. "
                f"Their tracebacks are in {result.experiment_path}."
            )
        return result

    def _claim_directory(self) -> str:
        """Make the sweep's directory; no other sweep gets the same."""
        if self.name is not None:
            path = os.path.join(self.storage_path, self.name)
            if os.path.isdir(path) and os.listdir(path):
                raise MisconfigurationError(
                    f"Sweep(name={self.name!r}): {path} holds another sweep. Choose another name, or "
                    "remove it."
                )
            os.makedirs(path, exist_ok=True)
            return self.name
        number = 0
        while True:
            try:
                os.makedirs(os.path.join(self.storage_path, f"sweep_{number}"))
            except FileExistsError:
                number += 1
                continue
            return f"sweep_{number}"

    def _trainable(
        self, workers: int, resources_per_worker: dict[str, float]
    ) -> Callable[[dict[str, Any]], None]:
        trial = functools.partial(
            run_trial,
            self.train,
            metric=self.metric,
            workers=workers,
            resources_per_worker=resources_per_worker,
            saves=self.save_checkpoints,
            folder=os.getcwd(),
        )

        def trainable(config: dict[str, Any]) -> None:
            trial(config)

        trainable.__name__ = getattr(self.train, "__name__", "trial")
        return trainable


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Tune from printing tables and one failure several times; put everything back afterwards."""
    added = {name: value for name, value in _QUIET.items() if name not in os.environ}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(added)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in added:
            del os.environ[name]


def run_trial(
    train: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    *,
    metric: str,
    workers: int,
    resources_per_worker: dict[str, float],
    saves: bool,
    folder: str,
) -> None:
    """Run one trial in the process that Ray Tune started for it.

    Args:
        train: The user's function.
        config: The trial's configuration.
        metric: What trials are compared by.
        workers: Workers that the trial has reserved; 0 when it trains in this process.
        resources_per_worker: What each of them has reserved.
        saves: Add a checkpoint to each report.
        folder: The driver's working directory, which relative paths mean here too.
    """
    import ray
    from ray import tune

    from orchestrator.sweep.trial import Trial, set_current

    if os.path.isdir(folder):
        os.chdir(folder)
    directory = tune.get_context().get_trial_dir() or folder
    trial = Trial(
        metric=metric,
        directory=directory,
        num_workers=workers,
        resources_per_worker=resources_per_worker,
        placement_group=ray.util.get_current_placement_group() if workers else None,
        saves=saves,
    )
    set_current(trial)
    try:
        train(config)
    except TrialStopped:
        if trial.ended:  # a normal return would be reported, and that report would wait for ever
            raise SystemExit(0) from None
    except Preempted as told:  # Ray Tune takes an end of the thread for the trial's, unless it failed
        raise RuntimeError(str(told)) from None
    finally:
        set_current(None)


def _resources(given: Any) -> tuple[PlacementGroupFactory, int]:
    """Return what a trial reserves, and how many workers that holds besides the trial's own process."""
    from ray import tune

    if given is None:
        given = {"CPU": 1}
    if isinstance(given, Mapping):
        return tune.PlacementGroupFactory([{name: float(amount) for name, amount in given.items()}]), 0
    if hasattr(given, "num_workers"):
        from cluster.spec import GroupSpec

        spec = GroupSpec.from_scaling_config(given)
        bundle = dict(spec.resources_per_worker)
        bundles: list[dict[str, float]] = [{}, *(dict(bundle) for _ in range(spec.num_workers))]
        return tune.PlacementGroupFactory(bundles, strategy=spec.placement_strategy), spec.num_workers
    raise MisconfigurationError(
        f"Sweep(resources_per_trial={given!r}). Use a dictionary like {{'CPU': 1}}, or a "
        "ray.train.ScalingConfig."
    )


def _check_room(resources: PlacementGroupFactory) -> None:
    """Refuse trials that can never be placed, with the arithmetic."""
    import ray

    needed = resources.required_resources
    there = ray.cluster_resources()
    short = {name: amount for name, amount in needed.items() if amount > there.get(name, 0.0)}
    if short:
        asked = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
        found = ", ".join(f"{there.get(name, 0.0):g} {name}" for name in needed)
        raise MisconfigurationError(
            f"Sweep(resources_per_trial=...): a trial needs {asked}, and the cluster has {found}. Ask for "
            "less, or add nodes."
        )
