"""Told to stop on a group: all ranks stop at one step, the driver holds the run, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from cluster import pool
from orchestrator.stops import Preempted
from tests.orchestrator.groups import Net, group_trainer, loader
from tests.orchestrator.tiny import assert_equal_weights

pytestmark = pytest.mark.ray


class Sends(pl.Callback):
    """From one rank, sends a signal to the driver or to the rank itself after a step; notes the end.

    Given a file it sends once: who takes over in the middle of the step runs its hooks again.
    """

    def __init__(
        self, number: signal.Signals, pid: int | None, after: int = 3, once: Path | None = None, rank: int = 1
    ) -> None:
        self.number = number
        self.once = once
        self.pid = pid
        self.rank = rank
        self.after = after
        self.ended: list[str] = []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        due = trainer.global_rank == self.rank and trainer.global_step == self.after
        if due and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            os.kill(os.getpid() if self.pid is None else self.pid, self.number)
        time.sleep(0.01)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.ended.append(f"{type(exception).__name__} at step {trainer.global_step}")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.ended.append("teardown")


class Drops(Net):
    """Draws random numbers in each step, and needs their state to go on."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels = batch
        loss = self.loss((torch.nn.functional.dropout(inputs, 0.2), labels))
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss


def fit(
    root: Path, *callbacks: pl.Callback, ckpt_path: str | None = None, **options: Any
) -> tuple[pl.Trainer, Drops]:
    """Four epochs of ten steps, of shuffled data."""
    pl.seed_everything(5)
    module = Drops()
    keeps = pl.callbacks.ModelCheckpoint(dirpath=root / "kept", every_n_epochs=4)
    options = {"max_epochs": 4, "callbacks": [*callbacks, keeps], "enable_checkpointing": None, **options}
    trainer = group_trainer(root, **options)
    try:
        trainer.fit(module, loader(160, shuffle=True), loader(32), ckpt_path=ckpt_path)
    except (KeyboardInterrupt, Preempted) as told:
        trainer.told = told  # type: ignore[attr-defined]
    return trainer, module


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.Trainer, Drops]:
    """The run that nobody disturbs."""
    return fit(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize(
    ("number", "to_driver", "expected"),
    [
        pytest.param(signal.SIGINT, True, KeyboardInterrupt, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, True, Preempted, id="SIGTERM to the driver"),
        pytest.param(signal.SIGTERM, False, Preempted, id="SIGTERM to a worker"),
    ],
)
def test_all_ranks_stop_at_one_step_and_go_on_from_it(
    tmp_path: Path,
    unbroken: tuple[pl.Trainer, Drops],
    number: signal.Signals,
    to_driver: bool,
    expected: type[BaseException],
) -> None:
    """Within steps of the word the run is saved and home; going on from "last" ends as the unbroken run."""
    sends = Sends(number, os.getpid() if to_driver else None)
    stopped, module = fit(tmp_path, sends)
    seen = "Preempted" if expected is Preempted else "Interrupted"
    told = stopped.told  # type: ignore[attr-defined]
    step = stopped.global_step
    assert type(told) is expected
    assert 3 <= step < 40
    assert f"training stopped after step {step}" in str(told)
    path = tmp_path / "kept" / "interrupted.ckpt"
    assert str(told).endswith(f"fit(ckpt_path={str(path)!r}).")
    assert stopped.interrupted
    assert sends.ended == [f"{seen} at step {step}", "teardown"]
    saved = torch.load(path, weights_only=True)
    weights = module.state_dict()
    assert [name for name, item in saved["state_dict"].items() if not torch.equal(item, weights[name])] == []
    whole, expected_module = unbroken
    again, resumed = fit(tmp_path, ckpt_path="last")
    assert again.global_step == whole.global_step == 40
    assert_equal_weights(resumed, expected_module)
    assert dict(again.callback_metrics) == dict(whole.callback_metrics)
    assert not path.exists()


def test_a_run_without_collectives_in_its_steps_stops_too(tmp_path: Path) -> None:
    """Ranks that never wait for each other, and differ in speed, stop at the same step all the same."""
    windows = 4000  # more than the faster rank runs until it is told

    class Apart(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            time.sleep(0.004 if self.global_rank else 0.008)

    class Notices(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_rank == 0 and trainer.state.windows == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = group_trainer(tmp_path, max_epochs=1, log_every_n_steps=10**6, callbacks=[Notices()])
    with pytest.raises(Preempted, match="SIGTERM to rank 0"):
        trainer.fit(Apart(), loader(windows * 16))
    assert 5 < trainer.state.windows < windows


def test_a_hung_group_is_ended_when_its_time_is_up(tmp_path: Path) -> None:
    """A step that does not end by the deadline ends the workers, and the run says that nothing was saved."""

    class Hangs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            while self.global_rank == 1 and self.global_step == 2:
                (tmp_path / "hung").touch()
                time.sleep(0.1)
            return super().training_step(batch, batch_idx)

    hung = tmp_path / "hung"

    def notice() -> float | None:
        return 1.0 if hung.exists() else None

    trainer = group_trainer(tmp_path, preemption_notice=notice)
    with pytest.raises(Preempted, match="did not come to the end of a step"):
        trainer.fit(Hangs(), loader(160))


TORCHRUN = """
import os, signal, sys, time
import orchestrator as pl
from tests.orchestrator.groups import Net, loader


class Sends(pl.Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            while trainer.engine.gathered_stop.order is None:
                time.sleep(0.001)


if __name__ == "__main__":
    trainer = pl.Trainer(
        accelerator="cpu", log_every_n_steps=2, max_epochs=2, callbacks=[Sends()], logger=False,
        default_root_dir=sys.argv[1], enable_progress_bar=False, enable_model_summary=False,
    )
    try:
        trainer.fit(Net(), loader(160))
    except pl.Preempted as told:
        print("rank", trainer.global_rank, "step", trainer.global_step, told.path, flush=True)
"""


def test_ranks_without_a_driver_agree_at_a_log_point(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Under torchrun a SIGTERM to any rank stops all of them at the next log point, behind a checkpoint."""
    (tmp_path / "train.py").write_text(TORCHRUN, encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
            *(str(tmp_path / "train.py"), str(tmp_path)),
        ],
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    path = tmp_path / "checkpoints" / "interrupted.ckpt"
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} step 4 {path}" for rank in (0, 1)], done.stderr
    assert path.is_file()


def wait_for_spare(trainer: pl.Trainer) -> None:
    """Return once the group that the trainer has used, which is warm, has its spare up."""
    until = time.monotonic() + 120
    with pool.lease(trainer.plan.group) as group:
        while not group._roster._recruits.up_to_stay():
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_spare_takes_over_from_a_worker_that_must_go(
    unbroken: tuple[pl.Trainer, Drops], tmp_path: Path
) -> None:
    """The run is not stopped, and ends in the bits of the one that nobody disturbed."""
    first, _ = fit(tmp_path / "first", spares=1, max_epochs=1)
    wait_for_spare(first)
    sends = Sends(signal.SIGTERM, None, after=15, once=tmp_path / "sent")
    trainer, module = fit(tmp_path / "second", sends, spares=1, max_failures=1)
    assert getattr(trainer, "told", None) is None and trainer.global_step == 40
    assert_equal_weights(module, unbroken[1])
    with pool.lease(trainer.plan.group) as group:
        assert group.generation > 1


def test_an_elastic_run_goes_on_without_a_worker_that_must_go(tmp_path: Path) -> None:
    """Nobody has to be up for it."""
    elastic = pl.strategies.ElasticStrategy(logical_ranks=2, min_workers=1)
    whole, expected = fit(tmp_path / "whole", strategy=elastic)
    sends = Sends(signal.SIGTERM, None, after=15)
    trainer, module = fit(tmp_path / "less", sends, strategy=elastic)
    assert getattr(trainer, "told", None) is None and trainer.global_step == whole.global_step == 40
    assert_equal_weights(module, expected)
