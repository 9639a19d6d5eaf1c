"""A disk that is really full stops saving and not training, in a file and in a directory of parts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator as pl
from modules.checkpoint import read
from modules.checkpoint.format import check
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.checkpoint.sharded_writer import abandon, write_parts, write_rest
from orchestrator.checkpoint.writer import CheckpointWriteError
from orchestrator.strategies import FSDPStrategy
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer

FULL = "No space left on device. Training goes on, complete checkpoints stay"
SIZE_KB = 400


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_KB}k", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class MakesRoom(pl.Callback):
    """Removes a file after some steps."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.path.unlink()


def whole(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder`, all of which must be whole, with nothing beside them."""
    steps = []
    for path in folder.iterdir():
        assert path.suffix == ".ckpt" and check(str(path))
        steps.append(read(path)["global_step"])
    return sorted(steps)


def test_training_goes_on_and_saves_again_where_there_is_room(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once that the disk is full and once that it is not; what was complete stays."""
    (disk / "filler").write_bytes(bytes(1024 * (SIZE_KB - 100)))
    saver = ModelCheckpoint(disk / "kept", every_n_train_steps=1, save_top_k=-1)
    with caplog.at_level("INFO", logger="orchestrator"):
        trainer = quiet_trainer(
            saver, MakesRoom(disk / "filler", 12), max_epochs=4, enable_checkpointing=True
        )
        trainer.fit(Tiny(), loader(16))
    steps = whole(disk / "kept")
    assert trainer.global_step == 16
    assert steps[0] == 1 and steps[-1] == 16 and len(steps) < 16
    missing = sorted(set(range(1, 17)) - set(steps))
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert caplog.text.count(FULL) == 1
    assert caplog.text.count(f"there is room again, after {len(missing)} failed saves") == 1
    assert Path(saver.best_model_path).exists() and saver.best_model_path.endswith("step=16.ckpt")


def test_a_save_that_one_asks_for_says_that_it_failed(disk: Path) -> None:
    """`save_checkpoint` raises, and leaves what stood there."""
    trainer = quiet_trainer()
    trainer.fit(Tiny(), loader(8))
    trainer.save_checkpoint(disk / "a.ckpt")
    left = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(left.f_bavail * left.f_frsize))
    with pytest.raises(CheckpointWriteError, match=r"a\.ckpt could not be written: No space left"):
        trainer.save_checkpoint(disk / "a.ckpt")
    assert sorted(path.name for path in disk.iterdir()) == ["a.ckpt", "filler"]
    assert read(disk / "a.ckpt")["global_step"] == 2


@pytest.mark.parametrize("lacking", ["part", "rest"])
def test_parts_of_which_one_finds_no_room_are_none(disk: Path, lacking: str) -> None:
    """Whether another rank's part does not fit or what rank 0 writes behind it: it is a full disk for both,
    and nothing is left of it."""
    large = {"shards": [torch.zeros(1024 * SIZE_KB // 4)], "places": [{"shape": [0], "offset": [0]}]}
    small = {"shards": [torch.zeros(4)], "places": [{"shape": [4], "offset": [0]}]}
    path, hidden = str(disk / "x.ckpt"), str(disk / ".x.tmp")
    if lacking == "part":
        with pytest.raises(CheckpointWriteError) as part:
            write_parts(large, path, hidden, 1)
        assert part.value.is_full
    else:
        write_parts(small, path, hidden, 1)
    write_parts(small, path, hidden, 0)
    content = {"state_dict": {}, **({} if lacking == "part" else {"large": large["shards"]})}
    with pytest.raises(CheckpointWriteError, match=r"x\.ckpt could not be written: No space left") as rest:
        write_rest(content, path, hidden, 2, lambda: False)
    assert rest.value.is_full
    assert list(disk.iterdir()) == []


def test_what_is_given_up_waits_for_who_still_writes(tmp_path: Path) -> None:
    """Rank 0, which found no room, removes the directory once the others have written or given up."""
    folder = tmp_path / ".x.tmp"
    small = {"shards": [torch.zeros(4)], "places": [{"shape": [4], "offset": [0]}]}
    looks: list[int] = []

    def gives_up() -> bool:
        looks.append(len(looks))
        if len(looks) == 3:
            write_parts(small, "x.ckpt", str(folder), 1)
        if len(looks) == 6:
            (folder / "full-00002").touch()
        return False

    abandon(str(folder), 3, gives_up)
    assert len(looks) == 6 and not folder.exists()


class Wide(Net):
    """About 70 KB of weights and of each of the optimizer's moments."""

    def __init__(self) -> None:
        super().__init__(8, 16)
        self.more = nn.Linear(128, 128)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) + 0 * self.more.weight.mean()


@pytest.mark.ray
def test_ranks_that_write_parts_go_on(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a sharded run too: said once for all ranks."""
    saver = ModelCheckpoint(disk / "kept", every_n_train_steps=1, save_top_k=-1)
    trainer = group_trainer(
        disk.parent, 2, max_epochs=1, callbacks=[saver], enable_checkpointing=True,
        strategy=FSDPStrategy(state_dict_type="sharded"),
    )  # fmt: skip
    with caplog.at_level("INFO", logger="orchestrator"):
        trainer.fit(Wide(), group_loader(48, 4))
    assert trainer.global_step == 6
    assert whole(disk / "kept") == [1]
    assert caplog.text.count(FULL) == 1
    assert saver.best_model_path == str(disk / "kept" / "epoch=0-step=1.ckpt")
