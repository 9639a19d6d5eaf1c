"""Checkpoints on other file systems, here that of this machine through pyarrow.fs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from modules.checkpoint import CheckpointError, read, remote
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.checkpoint.writer import CheckpointWriteError, write
from tests.orchestrator.tiny import Tiny, Validated, assert_equal_weights, loader, quiet_trainer

CONTENT = {"state_dict": {"a": torch.arange(3.0)}, "epoch": 2}


def uri_of(path: Path) -> str:
    return f"file://{path}"


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def test_a_file_goes_there_and_comes_back(tmp_path: Path) -> None:
    """Whole, sealed, and without anything beside it; a reference to it is read as it."""
    uri = uri_of(tmp_path / "new" / "a.ckpt")
    write(CONTENT, uri)
    remote.write_reference(uri, uri_of(tmp_path / "new" / "last.ckpt"))
    assert names(tmp_path / "new") == ["a.ckpt", "last.ckpt"]
    assert (tmp_path / "new" / "last.ckpt").stat().st_size < 100
    for name in ("a.ckpt", "last.ckpt"):
        assert torch.equal(read(uri_of(tmp_path / "new" / name))["state_dict"]["a"], torch.arange(3.0))
    assert torch.equal(read(tmp_path / "new" / "a.ckpt")["state_dict"]["a"], torch.arange(3.0))
    remote.remove(uri)
    remote.remove(uri)
    assert not remote.exists(uri)


def test_damage_and_absence_are_named_by_the_uri(tmp_path: Path) -> None:
    """As for any other path."""
    uri = uri_of(tmp_path / "a.ckpt")
    write(CONTENT, uri)
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match=uri):
        read(uri)
    with pytest.raises(FileNotFoundError):
        read(uri_of(tmp_path / "b.ckpt"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match=r"file/a\.ckpt could not be written"):
        write(CONTENT, uri_of(tmp_path / "file" / "a.ckpt"))


def test_a_run_keeps_its_checkpoints_there(tmp_path: Path) -> None:
    """The best, the last, and going on from either, or from the newest, as from a local directory."""

    def fit(epochs: int, ckpt_path: str | None = None, **arguments: Any) -> tuple[pl.Trainer, Validated, Any]:
        torch.manual_seed(1)
        saver = ModelCheckpoint(uri_of(tmp_path / "run"), monitor="val_loss", save_top_k=1, save_last=True)
        module = Validated(lambda parameters: torch.optim.Adam(parameters, lr=0.01), dropout=0.2)
        trainer = quiet_trainer(saver, max_epochs=epochs, enable_checkpointing=True, **arguments)
        trainer.fit(module, loader(16, shuffle=True), loader(4), ckpt_path=ckpt_path)
        return trainer, module, saver

    _, whole, saver = fit(3)
    assert saver.best_model_path.startswith(uri_of(tmp_path / "run"))
    assert len(names(tmp_path / "run")) == 2 and remote.exists(saver.last_model_path)
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    fit(1)
    again, module, _ = fit(3, ckpt_path="last")
    assert again.ckpt_path == uri_of(tmp_path / "run" / "last.ckpt")
    assert_equal_weights(module, whole)
    auto, _, _ = fit(4, resume="auto")
    assert auto.global_step == 16
    best = Validated.load_from_checkpoint(auto.checkpoint_callback.best_model_path, configure=None)
    assert isinstance(best, Validated)


def test_other_schemes_are_refused_by_name() -> None:
    """Before anything starts."""
    with pytest.raises(pl.MisconfigurationError, match="https:// is none of s3, gs"):
        ModelCheckpoint("https://host/run")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        quiet_trainer().fit(Tiny(), loader(8), ckpt_path="file:///nowhere/a.ckpt")
