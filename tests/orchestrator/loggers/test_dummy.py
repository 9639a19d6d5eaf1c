"""The logger that records nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from orchestrator.loggers import CSVLogger, DummyLogger, Logger


def test_every_call_is_taken(tmp_path: Path) -> None:
    """All of a logger's methods, the experiment's and unknown ones do nothing, and nothing is written."""
    logger = DummyLogger(CSVLogger(tmp_path, version=3))
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_hyperparams({"lr": 1})
    logger.finalize("success")
    logger.experiment.add_histogram("h", [1, 2])
    logger.experiment[0].add_image("i", None)
    logger.experiment["key"] = 1
    logger.watch("model")
    assert list(tmp_path.iterdir()) == []


def test_it_names_the_directories_of_the_other(tmp_path: Path) -> None:
    """Code that asks where the run's files are gets the same answer on every rank."""
    other = CSVLogger(tmp_path, version=3)
    logger = DummyLogger(other)
    for name in ("name", "version", "log_dir", "root_dir", "save_dir"):
        assert getattr(logger, name) == getattr(other, name)


def test_alone_it_has_no_directories() -> None:
    """Without a logger to stand in for there are none."""
    logger = DummyLogger()
    assert (logger.name, logger.version, logger.log_dir) == ("", "", None)


def test_it_pickles() -> None:
    """A copy is a logger too, and private names are not made up."""
    copy = pickle.loads(pickle.dumps(DummyLogger()))
    assert isinstance(copy, Logger)
    with pytest.raises(AttributeError):
        _ = copy._something  # type: ignore[attr-defined]
