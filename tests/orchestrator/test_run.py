"""The record of a run: what stands in its folder, however it ends, and that it never gets in the way."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator import run_facts
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.loggers import CSVLogger
from orchestrator.run import outcome
from orchestrator.run_files import origin_of, read_events, read_run
from orchestrator.stops import Interrupted, Preempted
from orchestrator.sweep.stopped import TrialStopped
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Validated, loader, quiet_trainer


class Net1(Validated):
    """Has hyperparameters."""

    def __init__(self, lr: float = 0.1, names: Any = ("a",)) -> None:
        super().__init__()
        self.save_hyperparameters()


def logged_trainer(root: Path, *callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    return quiet_trainer(*callbacks, logger=CSVLogger(root), default_root_dir=root, **arguments)


def kinds(folder: Path) -> list[str]:
    return [event["event"] for event in read_events(folder)]


def test_a_fit_is_recorded(tmp_path: Path) -> None:
    """What it was made of, each epoch, validation and checkpoint, and how it ended."""
    trainer = logged_trainer(tmp_path, max_epochs=2, enable_checkpointing=True)
    trainer.fit(Net1(lr=0.3), loader(16), loader(8))
    folder = tmp_path / "lightning_logs" / "version_0"
    run = read_run(folder)
    assert run["name"] == "lightning_logs/version_0"
    assert run["hyperparameters"]["lr"] == 0.3
    assert run["arguments"]["max_epochs"] == 2 and "precision" not in run["arguments"]
    assert run["environment"]["versions"]["orchestrator"] == pl.__version__
    assert run["code"]["module"].endswith("test_run.Net1") and len(run["code"]["module_sha256"]) == 16
    (call,) = run["calls"]
    assert (call["fn"], call["outcome"], call["error"]) == ("fit", "finished", None)
    assert (call["epochs"], call["steps"], call["samples"]) == (2, 8, 32)
    assert call["metrics"]["val_loss"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))
    assert sum(call["goodput"].values()) == pytest.approx(call["ended"] - call["started"], rel=0.2)
    assert call["data"] == {"fingerprint": "TensorDataset[16]", "batches": 4}
    each = ["validation", "checkpoint", "epoch"]
    assert [kind for kind in kinds(folder) if kind not in each] == ["start", "train", "end"]
    assert sorted(kinds(folder)) == sorted(["start", "train", "end", *each, *each])
    epoch = next(event for event in read_events(folder) if event["event"] == "epoch")
    assert (epoch["epoch"], epoch["step"], epoch["batches"], epoch["samples"]) == (0, 4, 4, 16)
    assert epoch["train_s"] > 0


def test_each_call_of_a_trainer_is_recorded(tmp_path: Path) -> None:
    """A test behind a fit is another call of the same run, with its own metrics."""
    trainer = logged_trainer(tmp_path)
    trainer.fit(Net1(), loader(8))
    trainer.test(dataloaders=loader(8), verbose=False)
    calls = read_run(str(trainer.log_dir))["calls"]
    assert [(call["fn"], call["outcome"]) for call in calls] == [("fit", "finished"), ("test", "finished")]
    assert "test_loss" in calls[1]["metrics"]


def test_a_failure_is_recorded(tmp_path: Path) -> None:
    """The first line of the error stands in the record, which says how far it came."""

    class Fails(Net1):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                raise ArithmeticError("too much\nand more")
            return super().training_step(batch, batch_idx)

    trainer = logged_trainer(tmp_path)
    with pytest.raises(ArithmeticError):
        trainer.fit(Fails(), loader(16))
    (call,) = read_run(str(trainer.log_dir))["calls"]
    assert (call["outcome"], call["error"], call["steps"]) == ("failed", "ArithmeticError: too much", 2)


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No logger, no record."""
    monkeypatch.chdir(tmp_path)
    quiet_trainer().fit(Net1(), loader(8))
    quiet_trainer(logger=True, fast_dev_run=True).fit(Net1(), loader(8))
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    """One warning says so, and training goes on."""
    trainer = logged_trainer(tmp_path)
    folder = Path(str(trainer.log_dir))
    (folder / "run.json").mkdir()
    with pytest.warns(UserWarning, match="goes on without its record") as told:
        trainer.fit(Net1(), loader(8))
    assert trainer.global_step == 2 and len(told) == 1


def test_a_record_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """So is a folder that has none, with what to do."""
    (tmp_path / "run.json").write_text(json.dumps({"format": 99, "calls": []}))
    with pytest.raises(pl.MisconfigurationError, match=r"format 99.*up to 1"):
        read_run(tmp_path)
    with pytest.raises(pl.MisconfigurationError, match="orchestrator runs"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(pl.MisconfigurationError, match="cannot be read"):
        read_run(tmp_path)


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    """Events before it are read; none where there is no file."""
    assert read_events(tmp_path) == []
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n[1]\n{"event": "ep')
    assert read_events(tmp_path) == [{"event": "start"}]


def test_going_on_with_other_code_or_data_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is not as it was is listed by name, with both values; what is the same is not mentioned."""
    first = logged_trainer(tmp_path, ModelCheckpoint(save_last=True), enable_checkpointing=True)
    first.fit(Net1(lr=0.1), loader(16))
    path = f"{first.log_dir}/checkpoints/last.ckpt"
    assert origin_of(path) == Path(str(first.log_dir))
    with caplog.at_level("INFO", logger="orchestrator"):
        logged_trainer(tmp_path, max_epochs=2).fit(Net1(lr=0.1), loader(16), ckpt_path=path)
        assert "Not all is as it was" not in caplog.text
        again = logged_trainer(tmp_path, max_epochs=2)
        again.fit(Net1(lr=0.2), loader(24), ckpt_path=path)
        same = CSVLogger(tmp_path, version=0)  # into the folder of the first one
        quiet_trainer(logger=same, max_epochs=2).fit(Net1(lr=0.4), loader(16), ckpt_path=path)
    assert "hyperparameters.lr: 0.1 then, 0.2 now" in caplog.text
    assert "hyperparameters.lr: 0.1 then, 0.4 now" in caplog.text
    assert "'TensorDataset[16]' then, 'TensorDataset[24]' now" in caplog.text
    assert "differences" in kinds(Path(str(again.log_dir)))


def test_the_commit_is_read_from_gits_files(tmp_path: Path) -> None:
    """Loose, packed, detached and from a worktree; outside of a repository there is none."""
    assert run_facts.commit_of(tmp_path) is None

    def git(*words: str, folder: Path = tmp_path / "repository") -> str:
        settings = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    (tmp_path / "repository" / "below").mkdir(parents=True)
    git("init", "-q")
    assert run_facts.commit_of(tmp_path / "repository") is None
    git("commit", "-q", "--allow-empty", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert run_facts.commit_of(tmp_path / "repository" / "below") == commit
    git("worktree", "add", "-q", str(tmp_path / "tree"))
    assert run_facts.commit_of(tmp_path / "tree") == commit
    git("pack-refs", "--all")
    assert run_facts.commit_of(tmp_path / "repository") == commit
    assert run_facts.commit_of(tmp_path / "tree") == commit
    git("checkout", "-q", "--detach")
    assert run_facts.commit_of(tmp_path / "repository") == commit


def test_how_a_call_ended_is_one_word() -> None:
    """Told to stop, told to go, stopped by a sweep, failed or none of these."""
    found = [outcome(error) for error in (None, Interrupted(""), Preempted(""), TrialStopped(), OSError())]
    assert found == ["finished", "interrupted", "preempted", "stopped", "failed"]


@pytest.mark.ray
def test_a_fit_on_a_group_is_recorded_by_the_driver(tmp_path: Path) -> None:
    """The same events as in this process, and an account that covers the whole call."""
    trainer = group_trainer(tmp_path, logger=CSVLogger(tmp_path), enable_checkpointing=True)
    trainer.fit(Net(), group_loader(64), group_loader(32))
    folder = Path(str(trainer.log_dir))
    (call,) = read_run(folder)["calls"]
    assert (call["world_size"], call["outcome"], call["samples"]) == (2, "finished", 128)
    assert sum(call["goodput"].values()) == pytest.approx(call["ended"] - call["started"], abs=0.5)
    assert call["goodput"]["communication"] > 0 and call["goodput"]["start"] > 0
    each = ["validation", "checkpoint", "epoch"]
    assert sorted(kinds(folder)) == sorted(["start", "train", "end", *each, *each])


@pytest.mark.ray
def test_a_failure_of_any_rank_is_recorded_with_the_step_that_was_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0, which tells where the run is, is freed behind another's failure and has its last word."""
    monkeypatch.setattr("cluster.dispatch._FREED_S", 30.0)  # a busy machine is no fault

    class Fails(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if (trainer.global_rank, trainer.global_step) == (1, 6):
                raise ArithmeticError("too much")

    trainer = group_trainer(tmp_path, logger=CSVLogger(tmp_path), callbacks=[Fails()])
    with pytest.raises(ArithmeticError):
        trainer.fit(Net(), group_loader(64))  # 4 steps an epoch
    (call,) = read_run(Path(str(trainer.log_dir)))["calls"]
    assert (call["outcome"], call["epochs"], call["steps"], call["samples"]) == ("failed", 1, 6, 96)
    assert call["goodput"]["compute"] > 0
