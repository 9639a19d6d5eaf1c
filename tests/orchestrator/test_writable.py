"""Where logs and checkpoints have no place, nothing is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.loggers import CSVLogger
from orchestrator.writable import why_unwritable
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer


class Untouched(Tiny):
    def setup(self, stage: str) -> None:
        raise AssertionError("nothing may start")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            {"default_root_dir": "file/runs", "enable_checkpointing": True},
            r"Trainer\(default_root_dir=\.\.\.\)",
        ),
        ({"default_root_dir": "file", "enable_checkpointing": True}, r"Trainer\(default_root_dir=\.\.\.\)"),
        ({"logger": CSVLogger("file", version="a")}, r"CSVLogger\(save_dir=\.\.\.\)"),
        ({"logger": CSVLogger("file")}, r"save_dir"),
        ({"dirpath": "file/here"}, r"ModelCheckpoint\(dirpath=\.\.\.\)"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_training(
    arguments: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the path, why, and the argument that says so."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    callbacks = []
    if "dirpath" in arguments:
        callbacks, arguments = [ModelCheckpoint(**arguments)], {"enable_checkpointing": True}
    with pytest.raises(
        pl.MisconfigurationError, match=rf"file.* cannot be written: .*Give another folder: .*{named}"
    ):
        quiet_trainer(*callbacks, **arguments).fit(Untouched(), loader(4))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_not_written_is_not_looked_at(tmp_path: Path) -> None:
    """Without logger and checkpoints any folder will do."""
    (tmp_path / "file").write_text("")
    quiet_trainer(default_root_dir=tmp_path / "file" / "x", max_steps=1).fit(Tiny(), loader(4))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """One that this user cannot write into."""
    (tmp_path / "theirs").mkdir(mode=0o500)
    assert "not for this user" in str(why_unwritable(str(tmp_path / "theirs" / "runs")))


def test_a_folder_that_can_be_made_is_fine(tmp_path: Path) -> None:
    """However deep, and nothing is made by asking."""
    assert why_unwritable(str(tmp_path / "a" / "b" / "c")) is None
    assert list(tmp_path.iterdir()) == []
