"""The table of metrics."""

from __future__ import annotations

import csv
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import CSVLogger
from orchestrator.loggers.csv import MetricsTable


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    """Return the rows on disk, without empty cells."""
    path = Path(logger.log_dir) / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def test_values_of_one_step_share_a_row(tmp_path: Path) -> None:
    """Calls at one step fill one row, though part of it was written before."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 1.5, "epoch": 0}, 3)
    logger.save()
    logger.log_metrics({"val": torch.tensor(2), "epoch": 0}, 3)
    logger.save()
    logger.log_metrics({"more": 1}, 3)
    logger.log_metrics({"loss": 1.0}, 4)
    logger.save()
    expected = [
        {"step": "3", "epoch": "0", "loss": "1.5", "val": "2.0", "more": "1"},
        {"step": "4", "loss": "1.0"},
    ]
    assert rows(logger) == expected


def test_a_second_value_at_a_step_gets_its_own_row(tmp_path: Path) -> None:
    """Nothing that was logged is lost."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 1}, 3)
    logger.log_metrics({"loss": 2}, 3)
    logger.log_metrics({"val": 5}, 3)
    logger.save()
    assert rows(logger) == [{"step": "3", "loss": "1"}, {"step": "3", "loss": "2", "val": "5"}]


def test_epoch_and_step_are_the_first_columns(tmp_path: Path) -> None:
    """The other columns follow in the order in which they came."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"z": 1, "epoch": 0, "a": 2}, 0)
    logger.save()
    logger.log_metrics({"new": 1}, 1)
    logger.save()
    assert (Path(logger.log_dir) / "metrics.csv").read_text() == "epoch,step,z,a,new\n0,0,1,2,\n,1,,,1\n"


def test_rows_are_held_until_they_span_enough_steps(tmp_path: Path) -> None:
    """With flush_logs_every_n_steps=10 the file is written when rows span ten steps, not at each call."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=10)
    counts = []
    for step in range(0, 30, 3):
        logger.log_metrics({"loss": step}, step)
        counts.append(len(rows(logger)))
    assert counts == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    logger.finalize("success")
    assert len(rows(logger)) == 10


def test_each_call_is_written_when_asked(tmp_path: Path) -> None:
    """flush_logs_every_n_steps=1 writes at each call."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    logger.log_metrics({"loss": 1}, 0)
    logger.log_metrics({"val": 1}, 0)
    assert rows(logger) == [{"step": "0", "loss": "1", "val": "1"}]


def test_steps_that_go_back_do_not_stop_the_writing(tmp_path: Path) -> None:
    """Rows are written after so many of them, when their steps do not grow."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=3)
    for step in (100, 50, 0):
        logger.log_metrics({"loss": step}, step)
    assert len(rows(logger)) == 3


def test_without_a_step_rows_are_counted(tmp_path: Path) -> None:
    """A call without a step follows the last one."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1})
    logger.log_metrics({"a": 2}, 7)
    logger.log_metrics({"a": 3})
    logger.save()
    assert [row["step"] for row in rows(logger)] == ["0", "7", "8"]


def test_an_existing_table_is_continued(tmp_path: Path) -> None:
    """A logger of a version that has a table appends to it, and adds its columns."""
    for step, name in ((0, "loss"), (1, "loss"), (2, "val")):
        logger = CSVLogger(tmp_path, version=0)
        logger.log_metrics({name: step}, step)
        logger.save()
    assert rows(logger) == [{"step": "0", "loss": "0"}, {"step": "1", "loss": "1"}, {"step": "2", "val": "2"}]


def test_a_row_that_a_crash_cut_short_spoils_no_other(tmp_path: Path) -> None:
    """Rows after a torn one stand on lines of their own."""
    logger = CSVLogger(tmp_path, version=0)
    logger.log_metrics({"loss": 0.5}, 0)
    logger.save()
    with open(Path(logger.log_dir) / "metrics.csv", "a") as file:
        file.write("1")
    again = CSVLogger(tmp_path, version=0)
    again.log_metrics({"loss": 0.25}, 2)
    again.save()
    again.log_metrics({"val": 1}, 3)
    again.save()
    assert [row for row in rows(again) if len(row) > 1] == [
        {"step": "0", "loss": "0.5"},
        {"step": "2", "loss": "0.25"},
        {"step": "3", "val": "1"},
    ]


def test_a_foreign_file_is_not_touched(tmp_path: Path) -> None:
    """A metrics.csv that is no table of steps is refused with its path and columns, and stays."""
    logger = CSVLogger(tmp_path, version=0)
    path = Path(logger.log_dir) / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("name,value\nx,1\n")
    logger.log_metrics({"loss": 1}, 0)
    with pytest.raises(MisconfigurationError, match=r"metrics\.csv.*\['name', 'value'\]"):
        logger.save()
    assert path.read_text() == "name,value\nx,1\n"


def test_a_failed_rewrite_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is replaced in one step, no temporary file stays, and the rows are written the next time."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 1}, 0)
    logger.save()
    logger.log_metrics({"val": 1}, 1)
    with monkeypatch.context() as patch:

        def refuse(*args: Any) -> None:
            raise OSError("disk full")

        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="disk full"):
            logger.save()
    assert rows(logger) == [{"step": "0", "loss": "1"}]
    assert [path.name for path in Path(logger.log_dir).iterdir()] == ["metrics.csv"]
    logger.save()
    assert rows(logger) == [{"step": "0", "loss": "1"}, {"step": "1", "val": "1"}]


def test_rewind_removes_what_will_be_repeated(tmp_path: Path) -> None:
    """Rows of the step and later go, written or not; then recording goes on."""
    logger = CSVLogger(tmp_path)
    for step in range(6):
        logger.log_metrics({"loss": step}, step)
        if step == 3:
            logger.save()
    logger.rewind(2)
    logger.log_metrics({"loss": 20}, 2)
    logger.save()
    assert [(row["step"], row["loss"]) for row in rows(logger)] == [("0", "0"), ("1", "1"), ("2", "20")]


NAMES = st.sampled_from(["a", "b", "c", "d"])
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["log", "log", "log", "save", "pickle"]), st.dictionaries(NAMES, st.integers(0, 3))
    )
)


@given(CALLS)
def test_nothing_is_lost_or_made_up(tmp_path_factory: pytest.TempPathFactory, calls: list[Any]) -> None:
    """Whatever is saved or carried over in between, the table has each value once, and steps in order."""
    logger = CSVLogger(tmp_path_factory.mktemp("csv"), flush_logs_every_n_steps=3)
    logged: list[tuple[int, str, int]] = []
    for index, (kind, metrics) in enumerate(calls):
        step = index // 3
        if kind == "log":
            logger.log_metrics(metrics, step)
            logged += [(step, name, value) for name, value in metrics.items()]
        elif kind == "save":
            logger.save()
        else:
            logger = pickle.loads(pickle.dumps(logger))
    logger.finalize("success")
    found = [
        (int(row["step"]), name, int(value))
        for row in rows(logger)
        for name, value in row.items()
        if name != "step"
    ]
    assert sorted(set(found)) == sorted(set(logged))
    assert [step for step, *_ in found] == sorted(step for step, *_ in found)


def test_hyperparameters_are_in_a_file(tmp_path: Path) -> None:
    """hparams.yaml holds all that was told; metrics told with them are a row of step 0."""
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1}, {"acc": 0})
    logger.log_hyperparams({"batch": 8}, 0.5)
    logger.save()
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {"lr": 0.1, "batch": 8}
    assert rows(logger) == [{"step": "0", "acc": "0", "hp_metric": "0.5"}]


def test_experiment_is_the_table(tmp_path: Path) -> None:
    """Rows of one's own can be written to the table directly."""
    logger = CSVLogger(tmp_path)
    assert isinstance(logger.experiment, MetricsTable)
    logger.experiment.log_metrics({"own": 1.0}, 2)
    logger.save()
    assert rows(logger) == [{"step": "2", "own": "1.0"}]


@pytest.mark.parametrize("wrong", [0, -5, 1.5, True, None])
def test_the_number_of_steps_is_checked(tmp_path: Path, wrong: Any) -> None:
    """The error repeats the value."""
    with pytest.raises(MisconfigurationError, match=f"flush_logs_every_n_steps={wrong!r}"):
        CSVLogger(tmp_path, flush_logs_every_n_steps=wrong)
