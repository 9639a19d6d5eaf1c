"""MLFlowLogger against the real package, in a folder of this machine."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import orchestrator as pl
from orchestrator.loggers import MLFlowLogger
from tests.orchestrator.groups import loader
from tests.orchestrator.loggers.offline import Fails, fit, nothing_sent, trainer_for

pytestmark = pytest.mark.extras


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, a home of its own, and no network."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with nothing_sent():
        yield
    assert not (tmp_path / "home").exists()


def run_of(logger: MLFlowLogger) -> Any:
    """The run as a reader finds it."""
    return logger.experiment.get_run(logger.run_id)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.ray)])
def test_a_fit_is_one_run(devices: int, tmp_path: Path) -> None:
    """Metrics, hyperparameters, tags and the kept checkpoint are in one finished run, here and on a group;
    a later call goes on with it.
    """
    logger = MLFlowLogger(
        "digits", run_name="first", save_dir=tmp_path / "runs", tags={"team": 7}, log_model=True, prefix="p"
    )
    trainer = trainer_for(logger, tmp_path, devices=devices)
    net = fit(trainer)
    run_id, run = logger.run_id, run_of(logger)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"features": "8", "width": "4"}
    assert run.data.tags["mlflow.runName"] == "first"
    assert run.data.tags["team"] == "7"
    assert run.data.metrics["p-train_loss"] == pytest.approx(float(trainer.callback_metrics["train_loss"]))
    (folder,) = logger.experiment.list_artifacts(run_id, "model/checkpoints")
    files = {Path(item.path).name for item in logger.experiment.list_artifacts(run_id, folder.path)}
    assert files == {f"{Path(folder.path).name}.ckpt", "metadata.yaml", "aliases.yaml"}
    aliases = Path(run.info.artifact_uri.removeprefix("file:")) / folder.path / "aliases.yaml"
    assert yaml.safe_load(aliases.read_text()) == ["latest", "best"]
    trainer.test(net, loader(8))
    assert "p-test_loss" in run_of(logger).data.metrics
    assert (logger.run_id, run_of(logger).info.status) == (run_id, "FINISHED")
    assert logger.save_dir == str(tmp_path / "runs")
    assert (logger.name, logger.version) == (logger.experiment_id, run_id)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.ray)])
def test_a_failed_fit_is_a_failed_run(devices: int, tmp_path: Path) -> None:
    """After an exception the run is marked as failed, on a group too."""
    logger = MLFlowLogger(save_dir=tmp_path / "runs")
    with pytest.raises(RuntimeError, match="enough"):
        fit(trainer_for(logger, tmp_path, Fails(), devices=devices))
    assert run_of(logger).info.status == "FAILED"


def test_each_checkpoint_can_be_uploaded(tmp_path: Path) -> None:
    """With log_model="all" a checkpoint is uploaded when it is saved, also one that is removed later."""
    logger = MLFlowLogger(save_dir=tmp_path / "runs", log_model="all")
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=logger,
        max_epochs=2,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    fit(trainer)
    found = [
        Path(item.path).name for item in logger.experiment.list_artifacts(logger.run_id, "model/checkpoints")
    ]
    assert found == ["epoch=0-step=2", "epoch=1-step=4"]


def test_a_run_that_is_there_goes_on(tmp_path: Path) -> None:
    """Given its id, a run of an earlier process is continued, in its own experiment."""
    first = MLFlowLogger("digits", save_dir=tmp_path / "runs")
    first.log_metrics({"loss": 1.0}, 0)
    again = MLFlowLogger(save_dir=tmp_path / "runs", run_id=first.run_id)
    again.claim()
    again.log_metrics({"loss": 0.5}, 1)
    assert [item.value for item in first.experiment.get_metric_history(first.run_id, "loss")] == [1.0, 0.5]
    assert (again.experiment_id, run_of(again).info.status) == (first.experiment_id, "RUNNING")


def test_copies_in_other_processes_are_the_same_run(tmp_path: Path) -> None:
    """A logger that was pickled after its run was fixed writes into the same run."""
    logger = MLFlowLogger(save_dir=tmp_path / "runs", synchronous=True)
    logger.claim()
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_hyperparams({"net": {"width": 3}, "note": "x" * 300}, {"score": 2.0})
    data = run_of(logger).data
    assert data.params == {"net/width": "3", "note": "x" * 250}
    assert data.metrics == {"score": 2.0}


def test_names_that_mlflow_refuses_are_told(tmp_path: Path) -> None:
    """A metric's name loses the characters that MLflow does not take, with a warning."""
    logger = MLFlowLogger(save_dir=tmp_path / "runs")
    with pytest.warns(UserWarning, match="does not take the name 'a@b'"):
        logger.log_metrics({"a@b": 1}, 0)
    assert run_of(logger).data.metrics == {"ab": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_dir": None}, "has no place for runs"),
        ({"experiment_name": ""}, "experiment_name='' is not a name|experiment_name=''"),
        ({"log_model": "some"}, r"MLFlowLogger\(log_model='some'\) is unknown"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Each error names the argument and what to write."""
    with pytest.raises(pl.MisconfigurationError, match=message):
        MLFlowLogger(**arguments)
