"""Checkpoints are written behind training; an interrupted run goes on from the newest whole one."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.checkpoint import writer
from orchestrator.loggers import CSVLogger
from tests.orchestrator.tiny import Tiny, Validated, assert_equal_weights, loader, quiet_trainer

STEPS = 7
_fsync = os.fsync


def adam(parameters: Any) -> Any:
    """An optimizer with state, and a scheduler that steps."""
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=9)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def damage(path: Path) -> None:
    """Flip a bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.unlink()
    path.write_bytes(data)


def test_a_path_is_complete_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written by another thread; whoever reads `best_model_path` waits for it, training does
    not."""
    threads: list[str] = []
    seen: list[bool] = []
    began, may = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        threads.append(threading.current_thread().name)
        began.set()
        may.wait(20)
        _fsync(descriptor)

    monkeypatch.setattr(writer.os, "fsync", slow)

    class Asks(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 2:  # step 1 was saved, and training has gone on
                assert began.wait(20)
                seen.append(bool(list(tmp_path.glob("*.ckpt"))))
                may.set()
                seen.append(Path(saver.best_model_path).exists())

    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    trainer = quiet_trainer(Asks(), saver, enable_checkpointing=True, max_steps=3)
    trainer.fit(Tiny(), loader(16))
    assert seen == [False, True]
    assert set(threads) == {"orchestrator-save"}
    assert torch.load(saver.best_model_path, weights_only=True)["global_step"] == 2


def test_a_full_disk_stops_saving_and_not_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, the checkpoint before stays and is known as the best, and the next save is tried."""
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    kept: list[str] = []

    class Full(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            saver._wait()
            if batch_idx == 2:
                kept.extend(sorted(os.listdir(tmp_path)))

            def fsync(descriptor: int) -> None:
                if batch_idx == 1:
                    raise OSError(28, "full")
                _fsync(descriptor)

            monkeypatch.setattr(writer.os, "fsync", fsync)

    with caplog.at_level(logging.INFO, logger="orchestrator"):
        trainer = quiet_trainer(Full(), saver, enable_checkpointing=True)
        trainer.fit(Tiny(), loader(12))
    assert trainer.global_step == 3
    assert kept == ["epoch=0-step=1.ckpt", "last.ckpt"]
    assert "step=2.ckpt could not be written: No space left on device. Training goes on" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["epoch=0-step=3.ckpt", "last.ckpt"]
    assert saver.best_model_path.endswith("epoch=0-step=3.ckpt")


def test_any_other_failure_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the latest at the next save, with the file and the reason."""

    def refuse(descriptor: int) -> None:
        raise OSError(13, "no")

    monkeypatch.setattr(writer.os, "fsync", refuse)
    trainer = quiet_trainer(ModelCheckpoint(tmp_path, every_n_train_steps=1), enable_checkpointing=True)
    with pytest.raises(OSError, match=r"step=1\.ckpt could not be written: Permission denied"):
        trainer.fit(Tiny(), loader(12))
    assert trainer.global_step == 2


def test_last_is_no_second_copy(tmp_path: Path) -> None:
    """`last.ckpt` and the best are two names of one file."""
    saver = ModelCheckpoint(tmp_path, save_last=True)
    quiet_trainer(saver, enable_checkpointing=True).fit(Tiny(), loader(8))
    assert os.path.samefile(saver.best_model_path, saver.last_model_path)
    assert not os.path.islink(saver.last_model_path)


def test_one_can_save_behind_training_oneself(tmp_path: Path) -> None:
    """`save_checkpoint(on_written=...)` calls it once the file is complete; without, the file is complete
    when it returns."""
    told: list[bool] = []

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            path = tmp_path / f"{trainer.global_step}.ckpt"
            save = trainer.save_checkpoint(path, on_written=lambda: told.append(path.exists()))
            save.wait()
            assert save.error is None
            assert trainer.save_checkpoint(tmp_path / "now.ckpt") is None
            assert (tmp_path / "now.ckpt").exists()

    quiet_trainer(Saves()).fit(Tiny(), loader(8))
    assert told == [True, True]


# ---------------------------------------------------------------- going on


def script(root: Path, epochs: int, **arguments: Any) -> tuple[pl.Trainer, Validated]:
    """A user's whole script."""
    torch.manual_seed(2)
    module = Validated(adam, dropout=0.2)
    trainer = quiet_trainer(
        max_epochs=epochs, enable_checkpointing=True, default_root_dir=root, resume="auto", **arguments
    )
    trainer.fit(module, loader(28, shuffle=True), loader(4))
    return trainer, module


def test_the_same_command_again_just_goes_on(tmp_path: Path) -> None:
    """resume="auto" starts anew at first, then from the newest checkpoint; raising max_epochs goes on from a
    finished run, and it ends as the run that was never stopped."""
    _, whole = script(tmp_path / "whole", 3)
    first, _ = script(tmp_path / "run", 1)
    assert first.ckpt_path is None
    again, _ = script(tmp_path / "run", 1)
    assert again.ckpt_path is not None and again.global_step == STEPS
    last, module = script(tmp_path / "run", 3)
    assert (last.current_epoch, last.global_step) == (3, 3 * STEPS)
    assert_equal_weights(module, whole)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """It is named with the reason; likewise where "last" was asked for."""
    saver = ModelCheckpoint(save_top_k=-1, save_last=True)
    trainer = quiet_trainer(saver, max_epochs=2, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(Validated(adam), loader(28), loader(4))
    folder = tmp_path / "checkpoints"
    assert os.path.samefile(folder / "last.ckpt", folder / "epoch=1-step=14.ckpt")
    damage(folder / "last.ckpt")  # a file of its own now
    (folder / "epoch=1-step=14.ckpt").unlink()
    again = quiet_trainer(max_epochs=2, enable_checkpointing=True, default_root_dir=tmp_path, resume="auto")
    with pytest.warns(
        UserWarning, match=r"resume='auto'.*checksum of .* is wrong.*The one before it is taken"
    ):
        again.fit(Validated(adam), loader(28), loader(4))
    assert str(again.ckpt_path).endswith("epoch=0-step=7.ckpt")
    saver = ModelCheckpoint(folder, save_last=True)
    other = quiet_trainer(saver, max_epochs=1, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"ckpt_path='last'.*The one before it is taken"):
        other.fit(Validated(adam), loader(28), loader(4), ckpt_path="last")
    assert "step=" in str(other.ckpt_path)


def test_loggers_go_on_in_the_version_that_is_resumed(tmp_path: Path) -> None:
    """The run stays one directory, with one numbered version."""
    for epochs in (1, 2):
        script(tmp_path, epochs, logger=CSVLogger(tmp_path, name="exp"), log_every_n_steps=1)
    assert [path.name for path in (tmp_path / "exp").iterdir()] == ["version_0"]
    saved = list((tmp_path / "exp" / "version_0" / "checkpoints").iterdir())
    # The one that was resumed from stays, as always.
    assert sorted(path.name for path in saved) == ["epoch=0-step=7.ckpt", "epoch=1-step=14.ckpt"]


def test_what_resume_takes(tmp_path: Path) -> None:
    """Another value is refused, and a checkpoint that is named wins."""
    with pytest.raises(pl.MisconfigurationError, match=r"Trainer\(resume=True\). Use 'auto' or None"):
        quiet_trainer(resume=True)
    trainer, _ = script(tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "named.ckpt")
    torch.manual_seed(2)
    other = quiet_trainer(max_epochs=2, default_root_dir=tmp_path, resume="auto")
    other.fit(Validated(adam), loader(28), ckpt_path=tmp_path / "named.ckpt")
    assert other.ckpt_path == str(tmp_path / "named.ckpt")


@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_of_an_epoch_can_be_gone_on_from(workers: int, tmp_path: Path) -> None:
    """With accumulation, dropout, a scheduler and loader processes: the final weights are bit-equal."""

    def run(ckpt_path: Path | None = None, *callbacks: pl.Callback) -> Validated:
        torch.manual_seed(4 if ckpt_path is None else 5)
        module = Validated(adam, dropout=0.3)
        trainer = quiet_trainer(
            *callbacks, max_epochs=2, accumulate_grad_batches=2, enable_checkpointing=bool(callbacks)
        )
        trainer.fit(module, loader(20, shuffle=True, num_workers=workers), ckpt_path=ckpt_path)
        return module

    saver = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    whole = run(None, saver)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 6
    for path in paths[: 3 if workers else 6]:
        assert_equal_weights(run(path), whole)
