"""NeptuneLogger against the real package, offline."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.loggers import NeptuneLogger
from tests.orchestrator.loggers.offline import Fails, fit, nothing_sent, trainer_for

pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, kept from talking, a folder and a home of its own, and no network."""
    pytest.importorskip("neptune")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    logging.getLogger("neptune").setLevel(logging.CRITICAL)
    with nothing_sent():
        yield
    assert not (tmp_path / "home").exists()


def offline(**arguments: Any) -> NeptuneLogger:
    """A logger whose run stays in the working directory."""
    return NeptuneLogger(project="team/digits", mode="offline", **arguments)


def operations() -> list[dict[str, Any]]:
    """What the folders hold, in the order in which it was recorded."""
    lines = [
        json.loads(line)
        for path in Path(".neptune/offline").glob("run__*/data-*.log")
        for line in path.read_text().splitlines()
    ]
    return [item["obj"] for item in sorted(lines, key=lambda item: item["at"])]


def values(name: str) -> list[tuple[float, int]]:
    """The values of a metric, and their steps."""
    return [
        (item["value"], item["step"])
        for operation in operations()
        if operation["type"] == "LogFloats" and operation["path"] == name.split("/")
        for item in operation["values"]
    ]


def assigned(name: str) -> Any:
    """What was written last under a name."""
    found = [item for item in operations() if item["path"] == name.split("/") and "value" in item]
    return found[-1]["value"] if found else None


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.ray)])
def test_a_fit_is_one_run(devices: int, tmp_path: Path) -> None:
    """Metrics with their step, hyperparameters and the checkpoint are recorded, here and on a group."""
    logger = offline(name="first", tags=["small"])
    trainer = trainer_for(logger, tmp_path, devices=devices)
    fit(trainer)
    logger.close()
    loss = float(trainer.callback_metrics["train_loss"])
    assert values("training/train_loss") == [(pytest.approx(loss), 2 // devices - 1)]
    assert (logger.name, len(logger.version)) == ("first", 32)
    assert assigned("training/status") == "success"
    assert assigned("training/hyperparams/features") is not None
    best = trainer.checkpoint_callback.best_model_path
    assert assigned("training/model/best_model_path") == best
    uploads = [item["path"] for item in operations() if item["type"] == "UploadFile"]
    assert ["training", "model", "checkpoints", Path(best).stem] in uploads


def test_a_failed_fit_is_a_failed_run(tmp_path: Path) -> None:
    """After an exception the run says that it failed."""
    logger = offline()
    with pytest.raises(RuntimeError, match="enough"):
        fit(trainer_for(logger, tmp_path, Fails()))
    assert assigned("training/status") == "failed"
    assert assigned("sys/failed") is True


def test_copies_in_other_processes_are_the_same_run() -> None:
    """Pickling stops the run here, and the copy goes on with its identifier and prefix."""
    logger = offline(prefix="p/q/")
    logger.log_metrics({"loss": 1.0}, 0)
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_hyperparams({"net": {"width": 3}, "sizes": [1, 2]}, 0.25)
    copy.log_metrics({"loss": 0.5}, 1)
    copy.close()
    assert copy.version == logger.version
    assert values("p/q/loss") == [(1.0, 0), (0.5, 1)]
    assert values("p/q/hp_metric") == [(0.25, 0)]
    assert assigned("p/q/hyperparams/net/width") == 3
    assert assigned("p/q/hyperparams/sizes") == "[1, 2]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"colour": "red"}, "an argument 'colour' that neptune.init_run does not take"),
        ({"prefix": "/"}, r"NeptuneLogger\(prefix='/'\)"),
        ({"log_model_checkpoints": 2}, "log_model"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Each error names the argument."""
    with pytest.raises(pl.MisconfigurationError, match=message):
        offline(**arguments)
