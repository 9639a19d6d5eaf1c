"""Sharded checkpoints: each rank writes its part, and any number of ranks of any strategy goes on from it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from modules.checkpoint import CheckpointError, read
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from orchestrator.strategies import FSDPStrategy
from tests.orchestrator.groups import Net, group_trainer, loader
from tests.orchestrator.tiny import assert_equal_weights

pytestmark = pytest.mark.ray

SHARDED = FSDPStrategy(state_dict_type="sharded")


class Odd(Net):
    """Layers whose rows do not divide by the ranks."""

    def __init__(self) -> None:
        super().__init__(8, 5)


class Watches(pl.Callback):
    """Notes what rank 0 gathers while it saves."""

    def __init__(self) -> None:
        self.whole = 0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        gather = trainer.strategy.whole_tensor

        def counting(item: Any) -> Any:
            self.whole += 1
            return gather(item)

        trainer.strategy.__dict__["whole_tensor"] = counting

    def on_train_end(self, trainer: Any, module: Any) -> None:
        del trainer.strategy.__dict__["whole_tensor"]


def fitted(
    root: Path,
    strategy: Any,
    devices: int = 2,
    ckpt_path: Path | None = None,
    *callbacks: Any,
    epochs: int = 2,
) -> Odd:
    """A module after training on a group, or here."""
    arguments: dict[str, Any] = {"max_epochs": epochs, "callbacks": list(callbacks)}
    if devices > 1:
        trainer = group_trainer(root, devices, strategy=strategy, enable_checkpointing=True, **arguments)
    else:
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=root,
            enable_model_summary=False, enable_checkpointing=False, **arguments,
        )  # fmt: skip
    module = Odd()
    trainer.fit(module, loader(24, batch_size=4), ckpt_path=ckpt_path)
    return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of DDP and one of sharded FSDP, with the checkpoints of each epoch, and how they ended."""
    root = tmp_path_factory.mktemp("sharded")
    ends: dict[str, Any] = {"root": root}
    for name, strategy in (("ddp", "ddp"), ("fsdp", SHARDED)):
        saver = ModelCheckpoint(root / name, filename="{epoch}", save_top_k=-1, save_last=True)
        ends["watches"] = Watches()
        callbacks = [saver] if name == "ddp" else [saver, ends["watches"]]
        ends[name] = fitted(root, strategy, 2, None, *callbacks)
    return ends


def test_each_rank_writes_its_part(saved: dict[str, Any]) -> None:
    """A checkpoint is a directory of parts with a manifest; nothing was gathered, and its content is DDP's to
    the bit."""
    folder = saved["root"] / "fsdp" / "epoch=0.ckpt"
    names = ["content.ckpt", "manifest.json", "rank-00000.ckpt", "rank-00001.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len(json.loads((folder / "manifest.json").read_text())["files"]) == 3
    assert saved["watches"].whole == 0
    ours, theirs = read(folder), read(saved["root"] / "ddp" / "epoch=0.ckpt")
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, weight in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], weight)
    for index, entry in theirs["optimizer_states"][0]["state"].items():
        for name, value in entry.items():
            assert torch.equal(ours["optimizer_states"][0]["state"][index][name], value)
    parts = [torch.load(folder / name, weights_only=True)["shards"] for name in names[2:]]
    assert [len(part[0]) for part in parts] == [3, 2]


def test_last_is_a_second_name(saved: dict[str, Any]) -> None:
    """The files of `last.ckpt` are the newest's own; the hidden directories are gone."""
    folder = saved["root"] / "fsdp"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt"]
    for path in (folder / "last.ckpt").iterdir():
        assert path.samefile(folder / "epoch=1.ckpt" / path.name)


def test_any_strategy_goes_on_to_the_same_bits(saved: dict[str, Any]) -> None:
    """Sharded to sharded, to DDP, and from DDP: on 2 ranks all end as the unbroken run does."""
    root = saved["root"]
    assert_equal_weights(saved["fsdp"], saved["ddp"])
    for strategy, source in ((SHARDED, "fsdp"), ("ddp", "fsdp"), (SHARDED, "ddp")):
        assert_equal_weights(fitted(root, strategy, 2, root / source / "epoch=0.ckpt"), saved["ddp"])


def test_any_number_of_ranks_takes_it(saved: dict[str, Any]) -> None:
    """On 1 and on 3 ranks the weights are those that 2 had saved, and training goes on there."""
    root, path = saved["root"], saved["root"] / "fsdp" / "epoch=0.ckpt"
    expected = Odd()
    expected.load_state_dict(read(path)["state_dict"])
    assert_equal_weights(Odd.load_from_checkpoint(path), expected)
    for devices, strategy in ((1, "auto"), (3, SHARDED)):
        assert_equal_weights(
            fitted(root, strategy, devices, path, epochs=1), expected
        )  # nothing is left to do
    again = ModelCheckpoint(root / "three", filename="{epoch}", save_top_k=-1)
    module = fitted(root, SHARDED, 3, path, again)
    whole = read(root / "three" / "epoch=1.ckpt")
    for name, weight in module.state_dict().items():
        assert torch.equal(whole["state_dict"][name], weight)
    assert whole["global_step"] == read(path)["global_step"] + 2


def test_what_it_takes() -> None:
    """Another type is refused; a directory without a manifest is no checkpoint."""
    with pytest.raises(MisconfigurationError, match=r"state_dict_type='shard'\) is unknown.*'sharded'"):
        FSDPStrategy(state_dict_type="shard")
    with pytest.raises(CheckpointError, match="no manifest"):
        read(Path(__file__).parent)


class Killed(pl.Callback):
    """Ends rank 1's process once, in the middle of the second epoch, once the first has its checkpoint;
    notes which steps were made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_rank == 0:
            with open(self.folder / "steps", "a", encoding="utf-8") as file:
                file.write(f"{trainer.global_step}\n")
        mark = self.folder / "killed"
        if trainer.global_rank == 1 and trainer.global_step == 5 and not mark.exists():
            mark.touch()
            while not list(self.folder.glob("lost/*.ckpt")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["sharded", pytest.param("full", marks=pytest.mark.slow)])
def test_a_lost_rank_is_replaced_and_all_go_on_from_the_newest_checkpoint(kind: Any, tmp_path: Path) -> None:
    """No rank holds the shards of another, so the epoch is trained again, to the same bits."""
    strategy = FSDPStrategy(state_dict_type=kind)
    whole = fitted(tmp_path / "whole", strategy, 2, None, ModelCheckpoint(dirpath=tmp_path / "whole"))
    keeps = ModelCheckpoint(dirpath=tmp_path / "lost")
    module = fitted(tmp_path / "lost", strategy, 2, None, keeps, Killed(tmp_path))
    assert_equal_weights(module, whole)
    steps = [int(line) for line in (tmp_path / "steps").read_text(encoding="utf-8").split()]
    assert (tmp_path / "killed").exists() and steps[:3] == [1, 2, 3] and steps[-3:] == [4, 5, 6]
    assert steps.count(1) == 1
