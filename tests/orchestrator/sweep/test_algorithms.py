"""Ray Tune's other schedulers and searchers run a sweep through, or say which extra they need."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ray import tune

import orchestrator as pl
from cluster import session
from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.algorithms import SCHEDULERS, SEARCHERS
from tests.orchestrator.groups import loader
from tests.orchestrator.sweep.test_sweep import Steady

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def ray_is_running() -> None:
    """Start Ray before the first sweep, so that its start is not part of a test."""
    session.connect()


def sweep(folder: Path, **options: Any) -> pl.Sweep:
    """Four trials of up to four reports, whose values are known."""

    def train(config: dict[str, Any]) -> None:
        trainer = pl.Trainer(accelerator="cpu", max_epochs=4, logger=False, enable_progress_bar=False)
        trainer.fit(Steady(config["quality"]), loader(16), loader(8))

    return pl.Sweep(
        train, {"quality": tune.uniform(0.1, 0.9)}, metric="score", mode="max", num_samples=4,
        max_concurrent_trials=2, storage_path=folder, save_checkpoints=False, verbose=False, **options,
    )  # fmt: skip


def check(result: Any) -> list[int]:
    """See that no trial failed and the best is the best; return how many reports each made."""
    assert result.errors == []
    assert len(result) == 4
    assert all(0.1 <= trial.config["quality"] <= 0.9 for trial in result)
    best = result.best_trial
    assert best.value == pytest.approx(best.report * best.config["quality"])
    assert best.value == max(value for record in result._records for _, value in record.values("score"))
    return [len(record.reports) for record in result._records]


@pytest.mark.slow
def test_hyperband_halves(tmp_path: Path) -> None:
    """It pauses trials until all of a bracket stand at the same report, and stops the worse half."""
    from ray.tune.schedulers import HyperBandScheduler

    rule = HyperBandScheduler(max_t=4, reduction_factor=2)
    reports = check(sweep(tmp_path, scheduler=rule).run())
    assert max(reports) == 4


@pytest.mark.slow
def test_median_stopping_stops_what_is_below_the_others(tmp_path: Path) -> None:
    """Trials above the median of the others' running means go on."""
    from ray.tune.schedulers import MedianStoppingRule

    rule = MedianStoppingRule(grace_period=1, min_samples_required=2)
    result = sweep(tmp_path, scheduler=rule).run()
    reports = check(result)
    assert len(result._records[0].reports) == len(result._records[1].reports) == max(reports) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # Ray's own call
def test_pb2_stays_within_its_bounds(tmp_path: Path) -> None:
    """It proposes by a model of what has helped so far."""
    pytest.importorskip("sklearn")
    from ray.tune.schedulers.pb2 import PB2

    rule = PB2(
        time_attr="training_iteration", perturbation_interval=2, hyperparam_bounds={"quality": [0.1, 0.9]}
    )
    assert check(sweep(tmp_path, scheduler=rule).run()) == [4, 4, 4, 4]


@pytest.mark.extras
def test_optuna_proposes(tmp_path: Path) -> None:
    """By its name, with the sweep's seed: the same proposals each time."""
    pytest.importorskip("optuna")
    first = sweep(tmp_path / "first", search_alg="optuna").run()
    again = sweep(tmp_path / "again", search_alg="optuna").run()
    assert check(first) == check(again) == [4, 4, 4, 4]
    configs = [trial.config["quality"] for trial in first]
    assert len(set(configs)) == 4
    assert configs[0] == again[0].config["quality"]


@pytest.mark.parametrize(("argument", "known"), [("search_alg", SEARCHERS), ("scheduler", SCHEDULERS)])
def test_what_is_not_installed_names_its_extra(
    argument: str, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything starts, for each algorithm that is known by name and needs a package."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, (_, _, packages, extra) in known.items():
        if packages:
            assert extra in extras
            with pytest.raises(MisconfigurationError, match=rf"ray-training-orchestrator\[{extra}\]"):
                pl.Sweep(print, {"lr": tune.uniform(0, 1)}, metric="score", **{argument: name})
