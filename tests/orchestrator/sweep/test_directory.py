"""Who may write into a sweep's directory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.directory import Description, claim

MINE = Description(
    train="train", metric="loss", mode="min", space={"lr": "1"}, seed=0, searcher="", scheduler=""
)


def test_a_sweep_without_a_name_gets_the_next_number(tmp_path: Path) -> None:
    """Two at once get two."""
    with claim(str(tmp_path), None, MINE) as first, claim(str(tmp_path), None, MINE) as second:
        assert (first.name, second.name) == ("sweep_0", "sweep_1")
        assert not first.goes_on


def test_the_same_sweep_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    """The message says what differs."""
    with claim(str(tmp_path), "mine", MINE) as first:
        assert not first.goes_on
    with claim(str(tmp_path), "mine", MINE) as again:
        assert again.goes_on
    other = replace(MINE, metric="acc")
    with (
        pytest.raises(MisconfigurationError, match="metric was 'loss', is 'acc'"),
        claim(str(tmp_path), "mine", other),
    ):
        pass


def test_two_sweeps_never_write_into_one_directory(tmp_path: Path) -> None:
    """The second is told which process is there; afterwards the directory is free again."""
    with (
        claim(str(tmp_path), "mine", MINE),
        pytest.raises(MisconfigurationError, match=f"process {os.getpid()} is writing"),
        claim(str(tmp_path), "mine", MINE),
    ):
        pass
    with claim(str(tmp_path), "mine", MINE) as again:
        assert again.goes_on
    assert os.listdir(tmp_path / "mine") == ["sweep.json"]


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    """It may be somebody's work."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(MisconfigurationError, match=r"thesis\.tex"), claim(str(tmp_path), "mine", MINE):
        pass
