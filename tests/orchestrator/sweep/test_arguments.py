"""A sweep's arguments, with Ray Tune's own objects."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.rungs import SynchronousRungs


def sweep(**arguments: Any) -> pl.Sweep:
    """A sweep that is never run."""
    good: dict[str, Any] = {"train": print, "space": {}, "metric": "score"}
    return pl.Sweep(**{**good, **arguments})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train": 3}, "train=3"),
        (
            {"train": lambda lr: None, "space": {"lr": 0.1}},
            r"one dict of all settings, and <lambda>\(lr\) takes 'lr'",
        ),
        ({"train": lambda a, b: None}, r"missing a required argument: 'b'"),
        ({"metric": None}, "metric=None"),
        ({"max_concurrent_trials": 0}, "max_concurrent_trials=0"),
        ({"time_budget_s": -1.0}, r"time_budget_s=-1\.0"),
        ({"time_budget_s": timedelta(0)}, "time_budget_s=0"),
        ({"max_failures": -2}, "max_failures=-2"),
        ({"seed": -1}, "seed=-1"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"storage_path": "s3://bucket"}, "is an address"),
        ({"scheduler": 3}, "scheduler=3"),
        ({"scheduler": "ashe"}, "Did you mean 'asha'"),
        ({"scheduler": "pbt"}, "hyperparam_mutations"),
        ({"scheduler": ASHAScheduler(metric="loss", mode="min")}, "Leave metric and mode out"),
        ({"search_alg": 3}, "search_alg=3"),
        ({"search_alg": "optunna"}, "Did you mean 'optuna'"),
        ({"search_alg": "zoopt"}, r"ray-training-orchestrator\[zoopt\]"),
        ({"tune_config": tune.TuneConfig(metric="loss")}, "metric='score'.*tune_config with metric='loss'"),
        ({"tune_config": tune.TuneConfig(trial_name_creator=str)}, "trial_name_creator"),
        ({"run_config": tune.RunConfig(name="x"), "name": "y"}, "name='y'.*run_config with name='x'"),
        ({"run_config": tune.RunConfig(log_to_file=True)}, "log_to_file"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], words: str) -> None:
    """Each error names the argument as it was written, before anything starts."""
    with pytest.raises(MisconfigurationError, match=words):
        sweep(**arguments)


def test_a_grid_with_a_searcher_is_refused() -> None:
    """Both would propose values; the same goes for a searcher beside rungs that go by numbers."""

    class Searcher(tune.search.Searcher):
        pass

    with pytest.raises(MisconfigurationError, match="'lr' is a grid"):
        sweep(space={"lr": tune.grid_search([1, 2])}, search_alg=Searcher())
    with pytest.raises(MisconfigurationError, match="SynchronousRungs"):
        sweep(space={"lr": tune.uniform(0, 1)}, search_alg=Searcher(), scheduler=SynchronousRungs())


def test_tunes_own_objects_are_taken() -> None:
    """What TuneConfig and RunConfig say counts like arguments; saying the same twice is allowed."""
    given = sweep(
        metric=None,
        name="mine",
        tune_config=tune.TuneConfig(metric="acc", mode="max", num_samples=5, scheduler=FIFOScheduler()),
        run_config=tune.RunConfig(
            name="mine", storage_path="/tmp/x", stop={"training_iteration": 3},
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    ).arguments  # fmt: skip
    assert (given.metric, given.mode, given.num_samples) == ("acc", "max", 5)
    assert (given.name, given.storage_path, given.max_failures) == ("mine", "/tmp/x", 2)
    assert given.stop == {"training_iteration": 3}
