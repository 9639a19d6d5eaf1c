"""What save_checkpoint writes outside of a fit: after it, after other calls, and in the driver of a group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator as pl
from modules import rng
from tests.orchestrator import groups
from tests.orchestrator.tiny import Validated, assert_equal_weights, loader, quiet_trainer


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """An optimizer that has a state."""
    return torch.optim.AdamW(parameters, lr=0.01)


def assert_equal_contents(left: Any, right: Any, path: str = "") -> None:
    """Two checkpoints hold the same, tensors to the bit."""
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_equal_contents(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_equal_contents(one, other, f"{path}/{index}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right, path


# ---------------------------------------------------------------- in this process


@pytest.mark.parametrize("call", ["validate", "test", "predict"])
def test_a_fit_can_be_saved_after_other_calls(call: str, tmp_path: Path) -> None:
    """An evaluation between fit and save_checkpoint changes nothing in the file, random numbers aside."""
    trainer, module = quiet_trainer(max_epochs=2), Validated(adamw)
    trainer.fit(module, loader(16), loader(8))
    trainer.save_checkpoint(tmp_path / "before.ckpt")
    options = {} if call == "predict" else {"verbose": False}
    with rng.isolated():  # a loader draws numbers
        getattr(trainer, call)(module, loader(8), **options)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("before.ckpt", "after.ckpt"))
    assert before["optimizer_states"][0]["state"]
    assert before["orchestrator"]["metrics"]["callback"].keys() == {"val_loss"}
    assert_equal_contents(before, after)


def test_training_goes_on_from_a_file_written_after_an_evaluation(tmp_path: Path) -> None:
    """fit, validate, save, fit from the file: the same weights as a fit without a break."""
    whole = Validated(adamw)
    quiet_trainer(max_epochs=3).fit(whole, loader(16))

    trainer, module = quiet_trainer(max_epochs=2), Validated(adamw)
    trainer.fit(module, loader(16))
    trainer.validate(module, loader(8), verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = Validated(adamw)
    quiet_trainer(max_epochs=3).fit(resumed, loader(16), ckpt_path=tmp_path / "a.ckpt")
    assert_equal_weights(resumed, whole)


def test_a_hook_of_an_evaluation_saves_the_fit(tmp_path: Path) -> None:
    """A callback that saves while validate runs writes the fit's optimizer state too."""

    class Saves(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "a.ckpt")

    trainer, module = quiet_trainer(), Validated(adamw)
    trainer.fit(module, loader(16))
    trainer.callbacks.append(Saves())
    trainer.validate(module, loader(8), verbose=False)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert (content["global_step"], len(content["optimizer_states"][0]["state"])) == (4, 4)


def test_the_last_of_several_fits_is_saved(tmp_path: Path) -> None:
    """After two fits and a test the file holds the second fit's optimizer state."""
    trainer, one, two = quiet_trainer(max_epochs=1), Validated(adamw), Validated(adamw)
    trainer.fit(one, loader(16))
    trainer.state = pl.Trainer(logger=False).state
    trainer.fit(two, loader(8))
    trainer.test(two, loader(8), verbose=False)
    content = trainer.dump_checkpoint()
    steps = {int(item["step"]) for item in content["optimizer_states"][0]["state"].values()}
    assert steps == {2}


def test_another_modules_optimizer_is_not_saved(tmp_path: Path) -> None:
    """After fit(a) and validate(b) the optimizer's state is a's: b is saved as weights, or not at all."""
    trainer, trained, other = quiet_trainer(), Validated(adamw), Validated(adamw)
    nn.init.zeros_(other.net[0].weight)
    trainer.fit(trained, loader(8))
    trainer.validate(other, loader(8), verbose=False)
    with pytest.raises(RuntimeError, match=r"the last fit trained another Validated.* weights_only=True"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert not content["state_dict"]["net.0.weight"].any()


def test_an_evaluation_alone_can_be_saved(tmp_path: Path) -> None:
    """Without a fit there is no optimizer, and the file holds an empty list of its states."""
    trainer = quiet_trainer()
    trainer.validate(Validated(), loader(8), verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["optimizer_states"] == []


def test_metrics_of_an_earlier_call_do_not_stay() -> None:
    """callback_metrics are those of the last call only."""
    trainer, module = quiet_trainer(), Validated()
    trainer.fit(module, loader(8), loader(8))
    assert trainer.callback_metrics.keys() == {"val_loss"}
    trainer.test(module, loader(8), verbose=False)
    assert trainer.callback_metrics.keys() == {"test_loss"}


# ---------------------------------------------------------------- in the driver of a group


class Marked(groups.Net):
    """Adds to its checkpoints how far its trainer is."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mark"] = self.trainer.global_step


class Fails(pl.Callback):
    """Raises in the second epoch, after the first one's checkpoint was written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(self.path)
        elif trainer.global_step == 2:
            raise ArithmeticError("planned")


class SavesInValidation(pl.Callback):
    """Tries to save while validate runs, and keeps what it was told."""

    def __init__(self) -> None:
        self.told = ""
        self.saved: set[str] = set()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "validate":
            return
        self.saved = set(trainer.dump_checkpoint(weights_only=True))
        try:
            trainer.dump_checkpoint()
        except RuntimeError as error:
            self.told = str(error)


@pytest.fixture
def grouped(tmp_path: Path) -> Iterator[Any]:
    """Makes trainers on two workers."""
    yield lambda *callbacks, **arguments: groups.group_trainer(
        tmp_path / "root", callbacks=list(callbacks), **arguments
    )


@pytest.mark.ray
def test_the_driver_saves_weights_after_a_fit_on_a_group(grouped: Any, tmp_path: Path) -> None:
    """The driver writes weights, counters and hyperparameters, which load_from_checkpoint reads; all else is
    refused."""
    tries = SavesInValidation()
    trainer, module = grouped(tries, max_epochs=1), Marked(width=12)
    trainer.fit(module, groups.loader(32))
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)

    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"], content["mark"]) == (1, 2, 2)
    assert "optimizer_states" not in content
    loaded = Marked.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.hparams["width"] == 12
    assert_equal_weights(loaded, module)

    for save in (lambda: trainer.save_checkpoint(tmp_path / "b.ckpt"), trainer.dump_checkpoint):
        with pytest.raises(RuntimeError, match=r"state is not in this process.* weights_only=True"):
            save()
    assert not (tmp_path / "b.ckpt").exists()

    trainer.validate(module, groups.loader(16), verbose=False)
    assert "the optimizer's state is not in this process" in tries.told
    assert "state_dict" in tries.saved


@pytest.mark.ray
def test_weights_that_were_lost_are_not_saved(grouped: Any, tmp_path: Path) -> None:
    """When a fit fails on its workers, the driver's older weights are not passed off as trained ones."""
    trainer, module = grouped(Fails(tmp_path / "first.ckpt")), groups.Net()
    with pytest.raises(ArithmeticError, match="planned"):
        trainer.fit(module, groups.loader(32))
    with pytest.raises(RuntimeError, match=r"failed on its workers, .* ModelCheckpoint callback"):
        trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    content = torch.load(tmp_path / "first.ckpt", weights_only=True)
    assert (content["global_step"], len(content["optimizer_states"])) == (1, 1)
