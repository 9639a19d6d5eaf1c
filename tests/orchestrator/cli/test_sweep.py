"""``orchestrator sweep`` makes a sweep of a file, and says in one line what is wrong with it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from modules.models import Spirals
from orchestrator.cli import main
from orchestrator.cli.sweep import find_class, make_sweep, parse_space, read_config
from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.records import EventFile
from orchestrator.sweep.sweep import Sweep

GOOD: dict[str, Any] = {
    "model": "MLPClassifier",
    "data": "Spirals",
    "space": {"in_features": 2, "classes": 3, "lr": {"loguniform": [1.0e-4, 0.1]}},
    "metric": "val_loss",
    "num_samples": 4,
    "scheduler": {"asha": {"max_t": 5}},
    "trainer": {"max_epochs": 5},
}


def names_of(kind: type) -> list[str]:
    """The arguments that a ready module takes."""
    import inspect

    return list(inspect.signature(kind).parameters)


def test_a_file_becomes_a_sweep() -> None:
    """Ready modules are known by name; the command line goes before the file."""
    sweep = make_sweep(GOOD, {"num_samples": 7, "name": None})
    assert isinstance(sweep, Sweep)
    assert sweep.arguments.num_samples == 7
    assert type(sweep.arguments.scheduler).__name__ == "AsyncHyperBandScheduler"
    assert sweep.train.datamodule is Spirals  # type: ignore[attr-defined]


def test_distributions_are_written_as_tune_calls_them() -> None:
    """Inside of other spaces too; everything else stays what it is."""
    space = parse_space(
        {
            "a": {"uniform": [0, 1]}, "b": {"choice": ["x", "y"]}, "c": {"grid_search": [1, 2]},
            "net": {"depth": {"randint": {"lower": 1, "upper": 4}}, "width": 3}, "layers": [1, 2],
        }
    )  # fmt: skip
    assert space["a"].upper == 1
    assert space["b"].categories == ["x", "y"]
    assert space["c"] == {"grid_search": [1, 2]}
    assert space["net"]["depth"].lower == 1
    assert (space["net"]["width"], space["layers"]) == (3, [1, 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrik": "x"}, "no setting 'metrik'.*'metric'"),
        ({"space": {"a": {"loguniform": [0, 1]}}}, "space: a: loguniform"),
        ({"space": {"a": {"loguniforn": [1, 2]}}}, "Did you mean 'loguniform'"),
        ({"space": 3}, "space is 3"),
        ({"model": "MLPClasifier"}, "Did you mean 'MLPClassifier'"),
        ({"model": "nowhere.Net"}, "nowhere.Net is not found"),
        ({"model": "os.path"}, "os.path is no class"),
        ({"scheduler": {"asha": {"max_x": 5}}}, "scheduler: asha: .*max_x"),
        ({"space": {"lr": 0.1}}, "lacks .*in_features"),
    ],
)
def test_mistakes_in_the_file_are_named(change: dict[str, Any], words: str) -> None:
    """Before anything starts."""
    with pytest.raises(MisconfigurationError, match=words):
        make_sweep({**GOOD, **change}, {})


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback, whichever file or folder it is."""
    path = tmp_path / "sweep.yaml"
    assert main(["sweep"]) == 2
    assert main(["sweep", "--config", str(path)]) == 2
    path.write_text("[1, 2", encoding="utf-8")
    assert main(["sweep", "--config", str(path)]) == 2
    path.write_text(yaml.safe_dump({**GOOD, "model": None}), encoding="utf-8")
    assert main(["sweep", "--config", str(path)]) == 2
    assert main(["sweep", "--report", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("orchestrator sweep: ") for line in said] == [True] * 5
    assert "is no sweep's directory" in said[-1]


def test_a_page_is_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of any sweep's directory, without Ray."""
    (tmp_path / "sweep.json").write_text(json.dumps({"metric": "loss", "mode": "min"}), encoding="utf-8")
    EventFile(str(tmp_path)).started("trial_00000", {"lr": 1})
    assert main(["sweep", "--report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")


def test_the_command_for_runs_takes_sweeps_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``orchestrator report SWEEP`` writes the same page, where it is told to; a sweep has no second one."""
    sweep, page = tmp_path / "mine", tmp_path / "page.html"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"metric": "loss", "mode": "min"}), encoding="utf-8")
    EventFile(str(sweep)).started("trial_00000", {"lr": 1})
    assert main(["report", str(sweep)]) == 0
    assert main(["report", str(sweep), "--output", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == (sweep / "report.html").read_text(encoding="utf-8")
    assert "trial" in page.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["report", str(sweep), str(sweep)]) == 2
    assert "is a sweep, and only runs" in capsys.readouterr().err


@pytest.mark.ray
def test_a_sweep_runs_from_its_file_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command searches; again with more samples it adds the new ones; the page tells of all."""
    path = tmp_path / "sweep.yaml"
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "limit_train_batches": 2}
    content = {**GOOD, "num_samples": 2, "name": "mine", "trainer": {"max_epochs": 2, **quiet}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = ["sweep", "--config", str(path), "--storage-path", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "Best: trial " in said.out
    assert f"Report: {tmp_path / 'mine' / 'report.html'}" in said.out
    assert "; 2 of 2 ended" in said.err
    assert main([*command, "--num-samples", "3"]) == 0
    rows = (tmp_path / "mine" / "results.csv").read_text(encoding="utf-8").strip().splitlines()
    assert len(rows) == 4
    assert main(["report", str(tmp_path / "mine")]) == 0


def test_files_are_read_as_mappings(tmp_path: Path) -> None:
    """A list is no settings; a class is found by its path."""
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    assert read_config(str(path)) == GOOD
    path.write_text("- 1", encoding="utf-8")
    with pytest.raises(MisconfigurationError, match="holds no settings"):
        read_config(str(path))
    assert find_class("model", "argparse.Namespace") is argparse.Namespace
