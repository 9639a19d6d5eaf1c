"""The newest checkpoint that can be used is found, whatever lies around it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint import local_files
from orchestrator.checkpoint.newest import checkpoints_in, first_usable, newest_first
from orchestrator.checkpoint.writer import CheckpointWriteError, write


def saved(path: Path, age: int, **content: Any) -> Path:
    """A checkpoint that was written `age` seconds ago."""
    write({"state_dict": {"a": torch.ones(3)}, "optimizer_states": [], **content}, path)
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def usable(folder: Path) -> str | None:
    return first_usable(newest_first(checkpoints_in([str(folder)])), "fit", trains=True, stacklevel=1)


def test_the_newest_whole_one_is_taken(tmp_path: Path) -> None:
    """A damaged one is named with the reason; weights alone, hidden and other files are passed over."""
    good = saved(tmp_path / "sub" / "good.ckpt", age=30)
    saved(tmp_path / "older.ckpt", age=40)
    bad = saved(tmp_path / "bad.ckpt", age=20)
    data = bytearray(bad.read_bytes())
    data[data.find(torch.ones(3).numpy().tobytes())] ^= 1
    bad.write_bytes(data)
    os.utime(bad, (10**9, 10**9))
    write({"state_dict": {}}, tmp_path / "weights.ckpt")
    (tmp_path / ".hidden.ckpt").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.warns(UserWarning, match=r"fit: .*bad.ckpt is damaged: .* The one before it is taken\.$"):
        assert usable(tmp_path) == str(good)


def test_names_of_one_file_count_once(tmp_path: Path) -> None:
    """A link is the same checkpoint; where there is none, there is none."""
    path = saved(tmp_path / "a.ckpt", age=1)
    local_files.give_second_name(str(path), str(tmp_path / "last.ckpt"), symbolic=False)
    assert newest_first(checkpoints_in([str(tmp_path), str(tmp_path)])) == [str(path)]
    assert usable(tmp_path / "nowhere") is None


def test_what_a_killed_process_left_is_cleared_up(tmp_path: Path) -> None:
    """Unfinished files of dead processes go, those of living ones stay, and a complete directory that was
    about to get its name gets it."""
    import subprocess
    import sys

    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
    pid = int(dead.stdout)
    host = local_files._host()
    (tmp_path / f".a.ckpt.{host}.{pid}.tmp").write_text("half")
    (tmp_path / f".b.ckpt.elsewhere.{pid}.tmp").write_text("half")
    mine = Path(local_files.temporary_name(str(tmp_path / "c.ckpt")))
    mine.write_text("half")
    for name in ("d.ckpt", "d.ckpt~"):
        folder = tmp_path / f".{name}.{host}.{pid}.tmp"
        folder.mkdir()
        (folder / "manifest.json").write_text(name)
    local_files.tidy(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f".b.ckpt.elsewhere.{pid}.tmp", mine.name, "d.ckpt"]
    )
    assert (tmp_path / "d.ckpt" / "manifest.json").read_text() == "d.ckpt"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stood under the name still does, and the error says which file and why."""
    path = saved(tmp_path / "a.ckpt", age=1)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "x")

    monkeypatch.setattr("orchestrator.checkpoint.writer.os.fsync", full)
    with pytest.raises(CheckpointWriteError, match=r"a\.ckpt could not be written: No space left") as told:
        write({"state_dict": {}}, path)
    assert told.value.is_full
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.ckpt"]
