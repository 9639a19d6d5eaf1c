"""What ranks print is kept in a file each, and shown in the terminal once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.loggers import CSVLogger
from orchestrator.rank_logs import RankLogs, read_ends
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader


@dataclass
class _Process:
    rank: int
    node_ip: str = "10.0.0.7"
    pid: int = 42


def test_each_rank_has_a_file(tmp_path: Path) -> None:
    """It begins with whose it is; a process that takes a lost one's place says so where it begins."""
    logs = RankLogs(lambda: tmp_path, "fit")
    logs.begin([_Process(0), _Process(1)])
    logs.take(0, "stdout", "one")
    logs.take(0, "stderr", "\n")
    logs.begin([_Process(0, pid=43)])
    logs.take(0, "stdout", "two\n")
    logs.close()
    head, one, again, two = (tmp_path / "ranks" / "rank0.log").read_text().splitlines()
    assert head.endswith("fit: rank 0, process 42 on 10.0.0.7") and again.endswith("process 43 on 10.0.0.7")
    assert (one, two) == ("one", "two")
    assert (tmp_path / "ranks" / "rank1.log").read_text().count("\n") == 1


def test_a_run_without_a_folder_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written anywhere."""
    monkeypatch.chdir(tmp_path)
    logs = RankLogs(lambda: None, "fit")
    logs.begin([_Process(0)])
    logs.take(0, "stdout", "x\n")
    logs.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_of_once(tmp_path: Path) -> None:
    """And ends no run."""
    (tmp_path / "ranks").write_text("a file is in the way")
    logs = RankLogs(lambda: tmp_path, "fit")
    logs.begin([_Process(0), _Process(1)])
    with pytest.warns(UserWarning, match="goes on without its ranks' logs") as told:
        logs.take(0, "stdout", "x\n")
        logs.take(1, "stdout", "x\n")
        logs.close()
    assert len(told) == 1


def test_the_end_of_each_log_is_read_in_whole_lines(tmp_path: Path) -> None:
    """In the order of ranks; a line that begins too early is left out, one that begins in time is not."""
    assert read_ends(tmp_path) == {}
    (tmp_path / "ranks").mkdir()
    for name in ("rank10.log", "rank2.log", "rank2.log.old"):
        (tmp_path / "ranks" / name).write_bytes(b"one\ntwo\nthr\xffee\n")
    assert list(read_ends(tmp_path)) == [2, 10]
    whole = "one\ntwo\nthr\ufffdee\n"
    for most, kept in ((99, whole), (15, whole), (14, whole[4:]), (11, whole[4:]), (10, whole[8:]), (1, "")):
        assert read_ends(tmp_path, most)[2] == kept


def test_a_progress_bar_has_an_end_too(tmp_path: Path) -> None:
    """Its states are lines, however many there are before a line is over."""
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "rank0.log").write_text("\r".join(f"step {step}" for step in range(10_000)))
    assert read_ends(tmp_path, 20)[0] == "step 9998\rstep 9999"


class Talks(Net):
    """Prints on every rank."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0:
            print(f"step on rank {self.global_rank}")
            print(f"trouble on rank {self.global_rank}", file=sys.stderr)
        return super().training_step(batch, batch_idx)


@pytest.mark.ray
def test_on_a_group_all_is_kept_and_the_first_rank_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No prefix, nothing of other ranks in the terminal; both streams in the files."""
    trainer = group_trainer(tmp_path, max_epochs=1, logger=CSVLogger(tmp_path))
    trainer.fit(Talks(), group_loader(16))
    said = capsys.readouterr()
    assert "step on rank 0\n" in said.out and "trouble on rank 0\n" in said.err
    assert "on rank 1" not in said.out + said.err
    for rank in range(2):
        text = (Path(str(trainer.log_dir)) / "ranks" / f"rank{rank}.log").read_text()
        assert f"step on rank {rank}\n" in text and f"trouble on rank {rank}\n" in text
        assert f"fit: rank {rank}, process" in text.splitlines()[0]
