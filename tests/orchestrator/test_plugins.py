"""What Trainer(plugins=...) takes: where checkpoints go, where processes come from, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.callbacks import ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from orchestrator.plugins import CheckpointIO, SLURMEnvironment, TorchElasticEnvironment, parse_plugins
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, quiet_trainer


class InMemory(CheckpointIO):
    """Keeps checkpoints in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.removed: list[str] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        import copy

        self.kept[path] = copy.deepcopy(checkpoint)
        Path(path).touch()

    def load_checkpoint(self, path: str, map_location: Any = None) -> dict[str, Any]:
        return self.kept[path]

    def remove_checkpoint(self, path: str) -> None:
        self.removed.append(path)
        Path(path).unlink(missing_ok=True)


def test_checkpoints_go_through_the_plugin(tmp_path: Path) -> None:
    """Saving, removing what is no longer the best, and going on are asked of it, with the same results."""
    unbroken, module, resumed = Tiny(), Tiny(), Tiny()
    quiet_trainer(max_epochs=3).fit(unbroken, loader(8))
    storage = InMemory()
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=2)
    trainer = quiet_trainer(saver, max_epochs=2, plugins=[storage], enable_checkpointing=True)
    trainer.fit(module, loader(8))
    first, last = (str(tmp_path / f"step={step}.ckpt") for step in (2, 4))
    assert list(storage.kept) == [first, last]
    assert storage.removed == [first]
    quiet_trainer(max_epochs=3, plugins=storage).fit(resumed, loader(8), ckpt_path=last)
    assert_equal_weights(resumed, unbroken)


class AsyncCheckpointIO:
    """A stranger's class of a known name."""


class MixedPrecision:
    """Another."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([InMemory(), InMemory()], "a InMemory and a InMemory, which do the same"),
        ([SLURMEnvironment(), TorchElasticEnvironment()], "a SLURMEnvironment and a TorchElasticEnvironment"),
        (InMemory, "Give an instance, not the class"),
        (AsyncCheckpointIO(), "Checkpoints are not written in the background"),
        ([MixedPrecision()], r"Use Trainer\(precision=\.\.\.\)"),
        ("ddp", "Use a CheckpointIO, a SLURMEnvironment or a TorchElasticEnvironment"),
    ],
)
def test_other_plugins_are_refused(value: Any, message: str) -> None:
    """Two of a kind, and what has another argument here, are one error."""
    with pytest.raises(MisconfigurationError, match=message):
        parse_plugins(value)


def test_no_plugins_are_none() -> None:
    """None and an empty list are the same."""
    assert parse_plugins(None) == parse_plugins([]) == parse_plugins(())
