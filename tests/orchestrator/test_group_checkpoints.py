"""Checkpoints and the ledger on a group: any step can be gone on from; a killed worker loses nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from modules.checkpoint import read
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.ledger_audit import audit
from tests.orchestrator.groups import Noisy, group_trainer, loader
from tests.orchestrator.tiny import assert_equal_weights

pytestmark = pytest.mark.ray

BATCHES = 6


class Dies(pl.Callback):
    """Kills the processes of two ranks, each once, at the beginning of a step."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        rank = trainer.global_rank
        mark = self.root / f"died-{rank}"
        if trainer.global_step == 2 + 3 * rank and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def fit(root: Path, devices: int, *callbacks: Any, ckpt_path: Any = None, **arguments: Any) -> pl.Trainer:
    """Train `Noisy` for two epochs, and leave it in the trainer."""
    torch.manual_seed(3)
    trainer = group_trainer(
        root, devices, callbacks=list(callbacks), enable_checkpointing=bool(callbacks), **arguments
    )
    trainer.fit(Noisy(), loader(4 * devices * BATCHES, batch_size=4, shuffle=True), ckpt_path=ckpt_path)
    return trainer


def test_every_step_of_an_epoch_can_be_gone_on_from(tmp_path: Path) -> None:
    """On 3 ranks, with accumulation, dropout and a schedule, the weights end equal to the bit."""
    saver = ModelCheckpoint(tmp_path / "all", save_top_k=-1, every_n_train_steps=1, filename="{step}")
    whole = fit(tmp_path, 3, saver, accumulate_grad_batches=2).lightning_module
    paths = sorted((tmp_path / "all").iterdir())
    assert len(paths) == BATCHES
    assert all(Path(path).exists() for path in (saver.best_model_path, *paths))
    for path in paths[: BATCHES // 2 + 1]:
        resumed = fit(tmp_path, 3, ckpt_path=path, accumulate_grad_batches=2).lightning_module
        assert_equal_weights(resumed, whole)


def test_killed_workers_lose_no_sample_and_no_checkpoint(tmp_path: Path) -> None:
    """The ledger holds each sample once; what is noted as kept is there, whoever was writing it; and who
    takes another's place saves with the others, at every step and at some.
    """
    seldom = ModelCheckpoint(tmp_path / "seldom", every_n_train_steps=4, save_top_k=-1, filename="{step}")
    saver = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_last=True, filename="{step}")
    plain = fit(tmp_path / "plain", 2).lightning_module
    trainer = fit(tmp_path, 2, Dies(tmp_path), saver, seldom, ledger=True)
    assert sorted(path.name for path in tmp_path.glob("died-*")) == ["died-0", "died-1"]
    assert_equal_weights(trainer.lightning_module, plain)
    found = audit(tmp_path)
    assert len(found.attempts) == 1
    assert [(epoch.used, epoch.missing, epoch.doubled) for epoch in found.epochs] == [(8 * BATCHES, 0, 0)] * 2
    assert all(epoch.is_complete for epoch in found.epochs)
    assert Path(saver.best_model_path).samefile(saver.last_model_path)
    assert read(saver.best_model_path)["global_step"] == 2 * BATCHES
    names = sorted(path.name for path in (tmp_path / "seldom").iterdir())
    assert names == ["step=12.ckpt", "step=4.ckpt", "step=8.ckpt"]
