"""A sweep's trial is the same Trainer.fit: it reports, obeys, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from cluster import session
from orchestrator.errors import MisconfigurationError, SweepError
from orchestrator.loggers import CSVLogger
from orchestrator.sweep.stopped import TrialStopped
from tests.orchestrator.groups import Net, loader

pytestmark = pytest.mark.ray


class Steady(Net):
    """Reports a validation value that depends on its setting and epoch only, so decisions are known."""

    def __init__(self, quality: float = 0.0, note: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.quality = quality
        self.note = note

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.quality * (self.current_epoch + 1), sync_dist=True)

    def on_train_epoch_start(self) -> None:
        if self.note:
            path = Path(self.note, f"{self.quality}-{self.global_rank}.txt")
            path.write_text(str(self.current_epoch), encoding="utf-8")


def scheduler(max_t: int = 6) -> Any:
    """ASHA that decides after the second report."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(max_t=max_t, grace_period=2, reduction_factor=2)


@pytest.fixture(scope="module", autouse=True)
def ray_is_running() -> None:
    """Start Ray before the first sweep, so that its start is not part of a test."""
    session.connect()


def test_trials_take_arguments_from_the_drivers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the moment at which the sweep runs, whenever Ray was started."""

    def train(config: dict[str, Any]) -> None:
        pl.Trainer(accelerator="cpu", max_epochs=1).fit(Steady(config["quality"]), loader(32), loader(16))

    monkeypatch.setenv("ORCHESTRATOR_TRAINER_LIMIT_TRAIN_BATCHES", "3")
    result = pl.Sweep(
        train, {"quality": 0.5}, metric="score", mode="max", storage_path=tmp_path, verbose=False
    ).run()
    assert result[0].metrics["global_step"] == 3


def test_bad_trials_stop_early_and_the_best_has_a_checkpoint(tmp_path: Path) -> None:
    """ASHA ends the worse trials after two reports; the best one's checkpoint loads into a module."""

    def train(config: dict[str, Any]) -> None:
        trainer = pl.Trainer(accelerator="cpu", max_epochs=6)
        trainer.fit(Steady(config["quality"]), loader(32), loader(16))

    from ray import tune

    result = pl.Sweep(
        train,
        {"quality": tune.grid_search([0.9, 0.5, 0.1, 0.05])},
        metric="score",
        mode="max",
        scheduler=scheduler(),
        max_concurrent_trials=1,
        storage_path=tmp_path,
        verbose=False,
    ).run()
    assert result.errors == []
    reports = {trial.config["quality"]: trial.metrics["training_iteration"] for trial in result}
    assert reports == {0.9: 6, 0.5: 2, 0.1: 2, 0.05: 2}
    best = result.get_best_result()
    assert best.config == {"quality": 0.9}
    assert best.metrics_dataframe["global_step"].tolist() == [4, 8, 12, 16, 20, 24]
    loaded = Steady.load_from_checkpoint(Path(best.checkpoint.path) / "checkpoint.ckpt")
    assert loaded.quality == 0.9
    assert sorted(os.listdir(tmp_path)) == ["sweep_0"]
    assert list(Path(best.path).glob("lightning_logs/version_0/events.*"))


def test_trials_on_two_workers_stop_on_all_ranks_at_once(tmp_path: Path) -> None:
    """A trial trains on workers inside its own reservation, and both ranks leave at the same epoch."""
    from ray import tune
    from ray.train import ScalingConfig

    def train(config: dict[str, Any]) -> None:
        trainer = pl.Trainer(accelerator="cpu", devices=2, max_epochs=4, logger=False, log_every_n_steps=1)
        trainer.fit(Steady(config["quality"], str(tmp_path)), loader(32), loader(16))

    result = pl.Sweep(
        train,
        {"quality": tune.grid_search([0.9, 0.1])},
        metric="score",
        mode="max",
        scheduler=scheduler(4),
        max_concurrent_trials=1,
        resources_per_trial=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        storage_path=tmp_path / "sweeps",
        save_checkpoints=False,
        verbose=False,
    ).run()
    assert result.errors == []
    last = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.txt")}
    assert last == {"0.9-0": "3", "0.9-1": "3", "0.1-0": "1", "0.1-1": "1"}


def test_lines_after_fit_do_not_run_in_a_stopped_trial_but_teardown_does(tmp_path: Path) -> None:
    """A stopped trial leaves fit by TrialStopped, which no ``except Exception`` catches, after teardown."""
    from ray import tune

    class Notes(pl.Callback):
        def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
            Path(tmp_path, f"teardown-{pl_module.quality}").touch()

    def train(config: dict[str, Any]) -> None:
        trainer = pl.Trainer(accelerator="cpu", max_epochs=4, logger=False, callbacks=[Notes()])
        try:
            trainer.fit(Steady(config["quality"]), loader(32), loader(16))
        except Exception:
            Path(tmp_path, "caught").touch()
        Path(tmp_path, f"after-{config['quality']}").touch()

    pl.Sweep(
        train,
        {"quality": tune.grid_search([0.9, 0.1])},
        metric="score",
        mode="max",
        scheduler=scheduler(9),
        max_concurrent_trials=1,
        storage_path=tmp_path / "sweeps",
        save_checkpoints=False,
        verbose=False,
    ).run()
    found = {name for name in os.listdir(tmp_path) if name != "sweeps"}
    assert found == {"teardown-0.9", "teardown-0.1", "after-0.9"}


def test_a_trial_that_fails_does_not_hurt_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its error is said once with its setting, and stands in the result; the others finish."""
    from ray import tune

    def train(config: dict[str, Any]) -> None:
        if config["quality"] < 0:
            raise ValueError("a planned failure")
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=CSVLogger(tmp_path / "logs"))
        trainer.fit(Steady(config["quality"]), loader(32), loader(16))

    result = pl.Sweep(
        train,
        {"quality": tune.grid_search([0.9, -1.0])},
        metric="score",
        mode="max",
        storage_path=tmp_path / "sweeps",
        save_checkpoints=False,
    ).run()
    assert len(result.errors) == 1
    assert result.get_best_result().config == {"quality": 0.9}
    said = capfd.readouterr().err
    assert "Trial" in said
    assert said.count("a planned failure") == 1
    assert "quality=-1" in said
    assert "quality=0.9): score 0.9 after 1 report" in said


def test_a_metric_that_is_never_logged_is_named_with_those_that_are(tmp_path: Path) -> None:
    """The trial fails at its first report, and the message lists what was logged."""

    def train(config: dict[str, Any]) -> None:
        pl.Trainer(accelerator="cpu", max_epochs=1, logger=False).fit(Steady(), loader(32), loader(16))

    with pytest.raises(SweepError, match="Did you mean 'score'\\?"):
        pl.Sweep(train, {}, metric="scores", storage_path=tmp_path, verbose=False).run()
    (page,) = tmp_path.glob("*/report.html")
    assert "Did you mean &#x27;score&#x27;?" in page.read_text(encoding="utf-8")


def test_a_diverged_trial_ends_as_stopped(tmp_path: Path) -> None:
    """A metric that is not finite ends the trial at once, and it does not count as failed."""

    def train(config: dict[str, Any]) -> None:
        trainer = pl.Trainer(accelerator="cpu", max_epochs=3, logger=False)
        trainer.fit(Steady(float("nan")), loader(32), loader(16))

    sweep = pl.Sweep(train, {}, metric="score", storage_path=tmp_path, save_checkpoints=False, verbose=False)
    result = sweep.run()
    assert result.errors == []
    assert result[0].metrics["training_iteration"] == 1


def test_a_trial_that_can_never_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    """Nothing starts when one trial asks for more than the cluster has."""
    sweep = pl.Sweep(print, {}, metric="score", resources_per_trial={"CPU": 4096}, storage_path=tmp_path)
    with pytest.raises(MisconfigurationError, match="4096 CPU"):
        sweep.run()
    assert os.listdir(tmp_path) == []


def test_a_sweep_never_writes_into_another(tmp_path: Path) -> None:
    """A name that is taken is refused before anything starts; without a name the next number is taken."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "result.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(MisconfigurationError, match="mine"):
        pl.Sweep(print, {}, metric="score", name="mine", storage_path=tmp_path).run()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train": 3}, "train=3"),
        ({"space": [1]}, r"space=\[1\]"),
        ({"metric": ""}, "metric=''"),
        ({"mode": "maximum"}, "mode='maximum'.*'max'"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": True}, "num_samples=True"),
    ],
)
def test_arguments_are_checked_when_they_are_given(arguments: dict[str, Any], words: str) -> None:
    """Each error names the argument, what was given, and what to write."""
    good: dict[str, Any] = {"train": print, "space": {}, "metric": "score"}
    with pytest.raises(MisconfigurationError, match=words):
        pl.Sweep(**{**good, **arguments})


def test_trial_stopped_is_no_exception() -> None:
    """An ``except Exception`` around fit lets it pass."""
    assert not issubclass(TrialStopped, Exception)
