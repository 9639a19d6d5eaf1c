"""SLURM's signal: save at the next log point, requeue, end, and go on from there in the next turn."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.plugins import SLURMEnvironment
from orchestrator.requeue import JobRequeued, checkpoint_to_resume, find_requeue
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, quiet_trainer

JOB = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NUM_NODES": "1",
}


class Signals(pl.Callback):
    """Sends this process SLURM's signal after a batch."""

    def __init__(self, after: int, number: signal.Signals = signal.SIGUSR1) -> None:
        self.after = after
        self.number = number

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.after:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM job whose scontrol writes down what it was asked; returns the file."""
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "asked"


def trainer(root: Path, *callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    """A Trainer with a log point every second step."""
    return quiet_trainer(*callbacks, default_root_dir=root, log_every_n_steps=2, max_epochs=2, **arguments)


def test_the_job_goes_on_where_it_was(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal after step 3 saves at step 4 and requeues; the next turn ends as the unbroken run."""
    unbroken, module, resumed = Tiny(), Tiny(), Tiny()
    trainer(tmp_path).fit(unbroken, loader(24))
    before = signal.getsignal(signal.SIGUSR1)
    first = trainer(tmp_path, Signals(after=3))
    with pytest.raises(JobRequeued) as ended:
        first.fit(module, loader(24))
    assert ended.value.code == 0
    assert first.global_step == 4
    assert job.read_text() == "requeue 77\n"
    assert signal.getsignal(signal.SIGUSR1) is before
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = trainer(tmp_path)
    again.fit(resumed, loader(24))
    assert again.ckpt_path == str(tmp_path / "requeued-77.ckpt")
    assert again.global_step == 12
    assert_equal_weights(resumed, unbroken)


def test_training_goes_on_where_the_queue_refuses(job: Path, tmp_path: Path) -> None:
    """A scontrol that fails is a warning with its words and the checkpoint's path."""
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho no such job >&2\nexit 3\n")
    used = trainer(tmp_path, Signals(after=3))
    with pytest.warns(UserWarning, match=r"scontrol requeue 77 failed: no such job.*requeued-77\.ckpt"):
        used.fit(Tiny(), loader(24))
    assert used.global_step == 12


def test_another_signal_may_be_chosen(job: Path, tmp_path: Path) -> None:
    """SLURMEnvironment says which signal, and an unknown one is refused."""
    chosen = SLURMEnvironment(requeue_signal="SIGUSR2")
    with pytest.raises(JobRequeued):
        trainer(tmp_path, Signals(3, signal.SIGUSR2), plugins=chosen).fit(Tiny(), loader(24))
    with pytest.raises(MisconfigurationError, match=r"requeue_signal='SIGUSR9'\): there is no such signal"):
        trainer(tmp_path, plugins=SLURMEnvironment(requeue_signal="SIGUSR9")).fit(Tiny(), loader(4))


def test_only_batch_jobs_that_want_it_are_requeued(tmp_path: Path) -> None:
    """Interactive jobs, batch scripts' own processes, and auto_requeue=False leave the signal alone."""
    root = str(tmp_path)
    assert find_requeue(JOB, None, root) is not None
    assert find_requeue(JOB, SLURMEnvironment(auto_requeue=False), root) is None
    assert find_requeue({**JOB, "SLURM_JOB_NAME": "interactive"}, None, root) is None
    assert find_requeue({"SLURM_JOB_ID": "77", "SLURM_PROCID": "0"}, None, root) is None
    assert find_requeue({}, None, root) is None


def test_a_first_turn_starts_anew(tmp_path: Path) -> None:
    """Only a restarted job takes up a checkpoint, and only its own."""
    (tmp_path / "requeued-77.ckpt").touch()
    found = find_requeue(JOB, None, str(tmp_path))
    assert checkpoint_to_resume(JOB, found) is None
    assert checkpoint_to_resume({**JOB, "SLURM_RESTART_COUNT": "0"}, found) is None
    again = {**JOB, "SLURM_RESTART_COUNT": "2"}
    assert checkpoint_to_resume(again, found) == str(tmp_path / "requeued-77.ckpt")
    assert (
        checkpoint_to_resume(again, find_requeue({**JOB, "SLURM_JOB_ID": "78"}, None, str(tmp_path))) is None
    )
