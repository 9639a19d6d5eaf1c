"""CometLogger against the real package, offline."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.loggers import CometLogger
from tests.orchestrator.loggers.offline import Fails, fit, nothing_sent, trainer_for

pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
QUIET = {
    "log_code": False,
    "log_git_metadata": False,
    "log_env_details": False,
    "parse_args": False,
    "auto_output_logging": False,
    "display_summary_level": 0,
}


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    """The package, kept from talking, and no network."""
    pytest.importorskip("comet_ml")
    logging.getLogger("comet_ml").setLevel(logging.CRITICAL)
    with nothing_sent():
        yield


def offline(tmp_path: Path, **arguments: Any) -> CometLogger:
    """A logger whose archives are in `tmp_path`."""
    return CometLogger(online=False, offline_directory=tmp_path / "comet", **QUIET, **arguments)


def messages(tmp_path: Path) -> list[dict[str, Any]]:
    """What the archives hold, the oldest first."""
    found = []
    for path in sorted((tmp_path / "comet").glob("*.zip"), key=lambda item: item.stat().st_mtime):
        with zipfile.ZipFile(path) as archive, archive.open("messages.json") as file:
            found += [json.loads(line) for line in file]
    return found


def metrics(tmp_path: Path, name: str) -> list[tuple[float, int]]:
    """The values of a metric, and their steps."""
    return [
        (float(item["payload"]["metric"]["metricValue"]), item["payload"]["metric"]["step"])
        for item in messages(tmp_path)
        if (item["payload"].get("metric") or {}).get("metricName") == name
    ]


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.ray)])
def test_a_fit_is_one_experiment(devices: int, tmp_path: Path) -> None:
    """Metrics with their step and hyperparameters are recorded under one key, here and on a group."""
    logger = offline(tmp_path, project="digits", name="first")
    trainer = trainer_for(logger, tmp_path, devices=devices)
    fit(trainer)
    logger.close()
    assert (logger.name, len(logger.version), logger.save_dir) == ("digits", 32, str(tmp_path / "comet"))
    loss = float(trainer.callback_metrics["train_loss"])
    assert metrics(tmp_path, "train_loss") == [(pytest.approx(loss), 2 // devices - 1)]
    text = json.dumps(messages(tmp_path))
    assert '"features"' in text
    assert all(logger.version in path.name for path in (tmp_path / "comet").glob("*.zip"))


def test_a_failed_fit_ends_the_experiment(tmp_path: Path) -> None:
    """After an exception the archive is written, and says that the run failed."""
    logger = offline(tmp_path)
    with pytest.raises(RuntimeError, match="enough"):
        fit(trainer_for(logger, tmp_path, Fails()))
    assert '"failed"' in json.dumps(messages(tmp_path))


def test_copies_in_other_processes_are_the_same_experiment(tmp_path: Path) -> None:
    """Pickling ends the experiment here, and the copy goes on with its key."""
    logger = offline(tmp_path, prefix="p")
    logger.log_metrics({"loss": 1.0}, 0)
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_hyperparams({"net": {"width": 3}})
    copy.log_metrics({"loss": 0.5}, 1)
    copy.close()
    assert copy.version == logger.version
    assert metrics(tmp_path, "p_loss") == [(1.0, 0), (0.5, 1)]


def test_older_names_of_arguments(tmp_path: Path) -> None:
    """save_dir, project_name and offline mean what they meant."""
    logger = CometLogger(save_dir=tmp_path, project_name="digits", offline=True, experiment_name="first")
    assert (logger.save_dir, logger.name) == (str(tmp_path), "digits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "new"}, r"CometLogger\(mode='new'\) is unknown"),
        ({"mode": "get"}, "Give its experiment_key"),
        ({"colour": "red"}, "does not take: .*colour"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Each error names the argument and what to write."""
    with pytest.raises(pl.MisconfigurationError, match=message):
        CometLogger(**arguments)
