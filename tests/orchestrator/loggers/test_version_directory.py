"""Numbered run directories, and what all loggers that write into them have in common."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import CSVLogger, TensorBoardLogger
from orchestrator.loggers.version_directory import claim_version, next_version

KINDS = pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], 0),
        (["version_0"], 1),
        (["version_9", "version_10", "version_2"], 11),
        (["version_3_old", "version_x", "myversion_7", "version_", "version_-1"], 0),
    ],
)
def test_the_next_number_is_one_more_than_the_highest(entries: list[str], expected: int) -> None:
    """Gaps are not filled, and other names do not count."""
    assert next_version(entries) == expected


def test_runs_that_start_at_once_get_different_numbers(tmp_path: Path) -> None:
    """However many claim at the same moment, no number is given twice and none is left out."""
    barrier = threading.Barrier(16)
    claimed: list[int] = []

    def claim() -> None:
        barrier.wait()
        claimed.append(claim_version(str(tmp_path / "logs")))

    threads = [threading.Thread(target=claim) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(16))


def test_a_file_of_the_next_name_is_passed_over(tmp_path: Path) -> None:
    """A file in the way of a directory takes its number."""
    (tmp_path / "version_0").touch()
    assert claim_version(str(tmp_path)) == 1


@KINDS
def test_making_a_logger_touches_nothing(tmp_path: Path, kind: Any) -> None:
    """The constructor makes no file."""
    kind(tmp_path)
    assert list(tmp_path.iterdir()) == []


@KINDS
def test_claim_makes_the_directory_once(tmp_path: Path, kind: Any) -> None:
    """The first claim fixes the version; a second changes nothing, and the next logger gets the next one."""
    loggers = [kind(tmp_path), kind(tmp_path)]
    for logger in (*loggers, *loggers):
        logger.claim()
    assert [logger.version for logger in loggers] == [0, 1]
    assert sorted(path.name for path in (tmp_path / "lightning_logs").iterdir()) == ["version_0", "version_1"]


@KINDS
def test_reading_the_directory_claims_it(tmp_path: Path, kind: Any) -> None:
    """The directory that a user was told before the run is the run's."""
    logger = kind(tmp_path)
    told = logger.log_dir
    kind(tmp_path).claim()
    logger.claim()
    assert logger.log_dir == told == str(tmp_path / "lightning_logs" / "version_0")


@KINDS
def test_a_given_version_is_used_as_it_is(tmp_path: Path, kind: Any) -> None:
    """An int becomes version_N, a string stays, and an existing directory is no obstacle."""
    (tmp_path / "exp" / "version_7").mkdir(parents=True)
    assert kind(tmp_path, name="exp", version=7).log_dir == str(tmp_path / "exp" / "version_7")
    assert kind(tmp_path, name="exp", version="mine").log_dir == str(tmp_path / "exp" / "mine")


@KINDS
@pytest.mark.parametrize("name", ["", None])
def test_without_a_name_versions_lie_in_the_save_dir(tmp_path: Path, kind: Any, name: str | None) -> None:
    """An empty name is no directory."""
    logger = kind(tmp_path, name=name)
    assert (logger.name, logger.root_dir, logger.save_dir) == ("", str(tmp_path), str(tmp_path))
    assert logger.log_dir == str(tmp_path / "version_0")


@KINDS
def test_home_and_variables_are_expanded(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory may begin with ~ or hold an environment variable."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOGS_FOR_TEST", str(tmp_path / "elsewhere"))
    assert kind("~/logs", version=0).log_dir == str(tmp_path / "home/logs/lightning_logs/version_0")
    assert kind("$LOGS_FOR_TEST", version=0).log_dir == str(tmp_path / "elsewhere/lightning_logs/version_0")


@KINDS
@pytest.mark.parametrize(
    "wrong",
    [
        {"save_dir": 3},
        {"save_dir": "s3://bucket/logs"},
        {"name": 1},
        {"version": -1},
        {"version": ""},
        {"version": 1.5},
        {"version": True},
        {"prefix": None},
    ],
)
def test_wrong_arguments_are_named(kind: Any, wrong: dict[str, Any]) -> None:
    """The error says which logger, which argument and which value."""
    ((argument, value),) = wrong.items()
    with pytest.raises(MisconfigurationError) as caught:
        kind(**{"save_dir": "logs", **wrong})
    assert str(caught.value).startswith(f"{kind.__name__}({argument}={value!r})")


@KINDS
def test_a_pickled_logger_goes_on_in_the_same_directory(tmp_path: Path, kind: Any) -> None:
    """The claimed version and the hyperparameters travel; what was recorded before is on disk by then."""
    logger = kind(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"loss": 1.0}, 0)
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_metrics({"loss": 0.5}, 1)
    copy.finalize("success")
    logger.finalize("success")
    assert copy.log_dir == logger.log_dir
    assert copy.hparams == {"lr": 0.1}
    assert read_losses(kind, Path(logger.log_dir)) == [(0, 1.0), (1, 0.5)]


@KINDS
def test_attributes_of_the_copy_can_be_taken_back(tmp_path: Path, kind: Any) -> None:
    """An object that takes over the state of its copy records on, though it had files open itself."""
    logger = kind(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_metrics({"loss": 0.5}, 1)
    logger.__dict__.update(copy.__getstate__())
    copy.finalize("success")
    logger.log_metrics({"loss": 0.25}, 2)
    logger.finalize("success")
    assert read_losses(kind, Path(logger.log_dir)) == [(0, 1.0), (1, 0.5), (2, 0.25)]


@KINDS
def test_the_prefix_comes_before_each_name(tmp_path: Path, kind: Any) -> None:
    """Metrics are recorded as prefix-name."""
    logger = kind(tmp_path, prefix="run")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert read_losses(kind, Path(logger.log_dir), "run-loss") == [(0, 1.0)]


@KINDS
def test_what_is_no_number_is_refused_by_name(tmp_path: Path, kind: Any) -> None:
    """The error names the metric and its type."""
    logger = kind(tmp_path)
    with pytest.raises(TypeError, match="'words' is a str: 'abc'"):
        logger.log_metrics({"words": "abc"}, 0)
    logger.finalize("failed")


def read_losses(kind: Any, directory: Path, name: str = "loss") -> list[tuple[int, float]]:
    """Return (step, value) of one metric as a reader of the logger's files sees them."""
    if kind is CSVLogger:
        import csv

        with open(directory / "metrics.csv", newline="") as file:
            return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(directory)).Reload().Scalars(name)]
