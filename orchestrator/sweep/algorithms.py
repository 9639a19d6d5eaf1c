"""Who proposes configurations and who stops trials: by Ray Tune's objects, or by name.

A name makes the object with its defaults; one whose package is missing is an error that names the extra. What
contradicts the sweep (a grid with a searcher, a scheduler with a metric of its own) is refused here, before
anything starts. The generators keep what they know in the sweep's directory, and take up more samples than
they were first asked for, so a finished sweep can be extended.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.search_generator import SearchGenerator

from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.sweep.rungs import SynchronousRungs
from orchestrator.sweep.space import grid_size, is_grid, leaves

# By name: module, class, the packages that it needs, and the extra that brings them.
SEARCHERS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "optuna": ("ray.tune.search.optuna", "OptunaSearch", ("optuna",), "optuna"),
    "hyperopt": ("ray.tune.search.hyperopt", "HyperOptSearch", ("hyperopt",), "hyperopt"),
    "bayesopt": ("ray.tune.search.bayesopt", "BayesOptSearch", ("bayes_opt",), "bayesopt"),
    "bohb": ("ray.tune.search.bohb", "TuneBOHB", ("ConfigSpace", "hpbandster"), "bohb"),
    "ax": ("ray.tune.search.ax", "AxSearch", ("ax",), "ax"),
    "nevergrad": ("ray.tune.search.nevergrad", "NevergradSearch", ("nevergrad",), "nevergrad"),
    "hebo": ("ray.tune.search.hebo", "HEBOSearch", ("hebo",), "hebo"),
    "zoopt": ("ray.tune.search.zoopt", "ZOOptSearch", ("zoopt",), "zoopt"),
}
SCHEDULERS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "fifo": ("ray.tune.schedulers", "FIFOScheduler", (), ""),
    "asha": ("ray.tune.schedulers", "ASHAScheduler", (), ""),
    "hyperband": ("ray.tune.schedulers", "HyperBandScheduler", (), ""),
    "bohb": ("ray.tune.schedulers", "HyperBandForBOHB", ("ConfigSpace", "hpbandster"), "bohb"),
    "median": ("ray.tune.schedulers", "MedianStoppingRule", (), ""),
    "rungs": ("orchestrator.sweep.rungs", "SynchronousRungs", (), ""),
}
_OF_THIS_RUN = ("_wanted", "_per_sample", "_limit", "_made", "may_add")
_NEED_MORE = {
    "pbt": "PopulationBasedTraining(hyperparam_mutations=...)",
    "pb2": "pb2.PB2(hyperparam_bounds=...)",
}


class Samples(BasicVariantGenerator):
    """Draws grids and random samples: the same ones for the same seed, however many are asked for.

    Args:
        num_samples: Samples of the space in all, those of an earlier run of the sweep included.
        per_sample: Trials that one sample makes.
        max_concurrent: Trials that may run at the same time, those that are paused not counted; None for as
            many as fit.
        seed: None for other samples each time.
    """

    def __init__(
        self, *, num_samples: int, per_sample: int, max_concurrent: int | None, seed: int | None
    ) -> None:
        super().__init__(random_state=seed)
        self._wanted, self._per_sample, self._limit = num_samples, per_sample, max_concurrent
        self._made: dict[str, Trial] = {}
        self.may_add: Callable[[], bool] = self._has_place

    def next_trial(self) -> Trial | None:
        """Return the next trial, or None when there is none now."""
        if not self.may_add():
            return None
        trial: Trial | None = super().next_trial()  # type: ignore[no-untyped-call]
        if trial is not None:
            self._made[trial.trial_id] = trial
        return trial

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Forget a trial."""
        super().on_trial_complete(trial_id, result, error)
        self._made.pop(trial_id, None)

    def _has_place(self) -> bool:
        if self._limit is None:
            return True
        active = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._made.values())
        return active < self._limit

    def get_state(self) -> dict[str, Any] | bool:
        """Return what a later run needs to go on drawing."""
        state: dict[str, Any] | bool = super().get_state()  # type: ignore[no-untyped-call]
        if isinstance(state, dict):
            for name in _OF_THIS_RUN:
                state.pop(name)
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier run's state, to the number of samples that is wanted now."""
        super().set_state(state)  # type: ignore[no-untyped-call]
        self._live_trials = set()
        wanted = self._wanted
        for iterator in self._iterators[-1:]:
            more = wanted - iterator.num_samples
            if more > 0:
                iterator.num_samples += more
                iterator.num_samples_left += more
                self._total_samples += more * self._per_sample
                self._finished = False


class Suggestions(SearchGenerator):
    """Takes configurations from a searcher, up to a number that may grow from one run to the next.

    Args:
        searcher: Ray Tune's.
        num_samples: Trials in all, those of an earlier run of the sweep included.
    """

    def __init__(self, searcher: Any, *, num_samples: int) -> None:
        super().__init__(searcher)
        self._wanted = num_samples

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from an earlier run's state, to the number of trials that is wanted now."""
        super().set_state(state)
        if self._wanted > self._total_samples:
            self._total_samples, self._finished = self._wanted, False


def make_generator(
    search_alg: Any,
    space: Mapping[str, Any],
    *,
    num_samples: int,
    max_concurrent: int | None,
    seed: int | None,
    scheduler: Any,
) -> Samples | Suggestions:
    """Return what proposes configurations.

    Args:
        search_alg: A searcher of Ray Tune or its name; None for grids and random samples.
        space: The search space.
        num_samples: Samples in all.
        max_concurrent: Trials at the same time; None for as many as fit.
        seed: Of random samples, and of a searcher that is given by its name.
        scheduler: Asked before each new trial, where it has an order of its own.

    Raises:
        MisconfigurationError: It cannot work; see `check_search_alg`.
    """
    check_search_alg(search_alg, space)
    if search_alg is None:
        per_sample = grid_size(space)
        samples = Samples(
            num_samples=num_samples, per_sample=per_sample, max_concurrent=max_concurrent, seed=seed
        )
        if isinstance(scheduler, SynchronousRungs):
            scheduler.plan(num_samples * per_sample, max_concurrent)
            samples.may_add = scheduler.may_add
        return samples
    searcher = search_alg
    if isinstance(search_alg, str):
        kind = _load("search_alg", search_alg, SEARCHERS)
        takes_seed = seed is not None and "seed" in inspect.signature(kind).parameters
        searcher = kind(seed=seed) if takes_seed else kind()
    if max_concurrent is not None and not isinstance(searcher, ConcurrencyLimiter):
        searcher = ConcurrencyLimiter(searcher, max_concurrent=max_concurrent)
    return Suggestions(searcher, num_samples=num_samples)


def check_search_alg(search_alg: Any, space: Mapping[str, Any]) -> None:
    """Refuse a searcher that is none or is not installed, and one beside a grid.

    Raises:
        MisconfigurationError: As said.
    """
    if search_alg is None:
        return
    if isinstance(search_alg, str):
        _load("search_alg", search_alg, SEARCHERS)
    elif not isinstance(search_alg, Searcher):
        raise MisconfigurationError(
            f"Sweep(search_alg={search_alg!r}) is a {type(search_alg).__name__}. Give a "
            "ray.tune.search.Searcher, "
            f"or one of {sorted(SEARCHERS)}; leave it out for grids and random samples."
        )
    grids = [path for path, value in leaves(space) if is_grid(value)]
    if grids:
        raise MisconfigurationError(
            f"Sweep(search_alg=...) proposes values itself, and {', '.join(map(repr, grids))} "
            f"{'is a grid' if len(grids) == 1 else 'are grids'} of the space. Use tune.choice in place of "
            "tune.grid_search, or leave search_alg out."
        )


def check_algorithms(search_alg: Any, scheduler: Any, space: Mapping[str, Any]) -> None:
    """Refuse a searcher and a scheduler that cannot work, alone or together.

    Raises:
        MisconfigurationError: As said.
    """
    check_search_alg(search_alg, space)
    made = make_scheduler(scheduler)
    if search_alg is not None and isinstance(made, SynchronousRungs):
        raise MisconfigurationError(
            "Sweep(scheduler=SynchronousRungs(...), search_alg=...): a searcher proposes by what has "
            "ended so far, "
            "so its trials depend on the cluster. Use grids and random samples, or another scheduler."
        )


def make_scheduler(scheduler: Any) -> Any:
    """Return what stops trials: Ray Tune's object, or the one of that name; None for none.

    Raises:
        MisconfigurationError: It is no scheduler, has a metric of its own, or is not installed.
    """
    if scheduler is None or isinstance(scheduler, SynchronousRungs):
        return scheduler
    if isinstance(scheduler, str):
        if scheduler in _NEED_MORE:
            raise MisconfigurationError(
                f"Sweep(scheduler={scheduler!r}) needs to know what to change. Use "
                f"ray.tune.schedulers.{_NEED_MORE[scheduler]}."
            )
        return scheduler_class(scheduler)()
    from ray.tune.schedulers import TrialScheduler

    if not isinstance(scheduler, TrialScheduler):
        raise MisconfigurationError(
            f"Sweep(scheduler={scheduler!r}) is a {type(scheduler).__name__}. Give a scheduler of "
            f"ray.tune.schedulers, or one of {sorted(SCHEDULERS)}."
        )
    if scheduler.metric is not None:
        raise MisconfigurationError(
            f"Sweep(metric=...) and {type(scheduler).__name__}(metric={scheduler.metric!r}) both say "
            "what trials "
            "are compared by. Leave metric and mode out of the scheduler."
        )
    return scheduler


def scheduler_class(name: str) -> Any:
    """Return the class of the scheduler of that name.

    Raises:
        MisconfigurationError: There is none, or its package is not installed.
    """
    return _load("scheduler", name, SCHEDULERS)


def _load(argument: str, name: str, known: Mapping[str, tuple[str, str, tuple[str, ...], str]]) -> Any:
    """Return the class of that name, or say which extra brings it."""
    if name not in known:
        raise MisconfigurationError(
            f"Sweep({argument}={name!r}) is unknown.{suggest(name, known)} Use one of {sorted(known)}, or an "
            "object of Ray Tune."
        )
    module, attribute, packages, extra = known[name]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise MisconfigurationError(
            f"Sweep({argument}={name!r}) needs {', '.join(missing)}. Install the extra: "
            f"pip install 'ray-training-orchestrator[{extra}]'."
        )
    return getattr(importlib.import_module(module), attribute)
