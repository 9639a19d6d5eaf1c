"""Every form of `ckpt_path`, and what else the entry points take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from tests.orchestrator.tiny import Tiny, Validated, assert_equal_weights, loader, quiet_trainer


def trained(directory: Path, **options: Any) -> tuple[pl.Trainer, Validated]:
    """A trainer and module after two epochs that saved their last checkpoint in `directory`."""
    saver = ModelCheckpoint(directory, save_last=True, **options)
    trainer, module = quiet_trainer(saver, max_epochs=2, enable_checkpointing=True), Validated()
    trainer.fit(module, loader(8), loader(4))
    return trainer, module


def test_last_is_found_by_a_later_run(tmp_path: Path) -> None:
    """A script that is started again finds the newest last checkpoint of the directory that it names."""
    trained(tmp_path)
    os.utime(tmp_path / "last.ckpt", (1, 1))
    trained(tmp_path)  # its last is last-v1.ckpt, and newer
    again = quiet_trainer(ModelCheckpoint(tmp_path, save_last=True), max_epochs=3, enable_checkpointing=True)
    again.fit(Validated(), loader(8), loader(4), ckpt_path="last")
    assert Path(str(again.ckpt_path)).name == "last-v1.ckpt"
    assert (again.current_epoch, again.global_step) == (3, 6)


def test_last_that_is_not_there_starts_anew(tmp_path: Path) -> None:
    """The first start of a script that says "last" begins from the weights as they are, with a warning."""
    trainer = quiet_trainer(ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"fit\(ckpt_path='last'\): there is no last checkpoint yet"):
        trainer.fit(Tiny(), loader(8), ckpt_path="last")
    assert trainer.ckpt_path is None and trainer.global_step == 2


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("hpc", "not chosen by a scheduler or registry"),
        ("registry", "not chosen by a scheduler or registry"),
        ("registry:name:version:2", "not chosen by a scheduler or registry"),
        ("https://host/a.ckpt", "https:// is none of s3, gs, .*Download it first"),
        (3, "Use a path, 'best', 'last' or None"),
    ],
)
def test_forms_that_cannot_be_are_refused(path: Any, advice: str) -> None:
    """The error names the call and what was given, and says what can be."""
    with pytest.raises(pl.MisconfigurationError, match=rf"fit\(ckpt_path={path!r}\).*{advice}"):
        quiet_trainer().fit(Tiny(), loader(8), ckpt_path=path)


def test_without_a_module_the_best_is_taken_with_a_warning(tmp_path: Path) -> None:
    """It says which file, and how to mean it; without a best one the weights are taken as they are."""
    trainer, _ = trained(tmp_path, monitor="val_loss")
    best = trainer.checkpoint_callback.best_model_path
    for call in (trainer.validate, trainer.test):
        with pytest.warns(UserWarning, match=rf"{call.__name__}\(\) was called without a module.*{best}"):
            call(dataloaders=loader(4), verbose=False)
    with pytest.warns(UserWarning, match="predict") as told:
        trainer.predict(dataloaders=loader(4))
    assert told[0].filename == __file__
    other = quiet_trainer()
    other.fit(Validated(), loader(8))
    other.test(dataloaders=loader(4), verbose=False)
    assert other.ckpt_path is None


def test_a_path_that_is_set_stays(tmp_path: Path) -> None:
    """`trainer.ckpt_path = ...` holds for all calls, until it is set to None or a call is given another."""
    trainer, module = trained(tmp_path)
    last = str(tmp_path / "last.ckpt")
    fresh = quiet_trainer()
    fresh.ckpt_path = last
    for _ in range(2):
        other = Validated()
        fresh.validate(other, loader(4), verbose=False)
        assert_equal_weights(other, module)
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    fresh.validate(Validated(), loader(4), ckpt_path=tmp_path / "b.ckpt", verbose=False)
    assert fresh.ckpt_path == str(tmp_path / "b.ckpt")
    fresh.validate(Validated(), loader(4), verbose=False)
    assert fresh.ckpt_path is None
    fresh.ckpt_path = last
    fresh.ckpt_path = None
    untouched, other = Validated(), Validated()
    fresh.validate(other, loader(4), verbose=False)
    assert_equal_weights(other, untouched)


@pytest.mark.parametrize("call", ["fit", "validate", "test", "predict"])
def test_files_are_never_unpickled(call: str, tmp_path: Path) -> None:
    """`weights_only=True` is how files are always read; False changes nothing and says so."""
    _, module = trained(tmp_path)
    trainer = quiet_trainer(max_epochs=3)
    run = getattr(trainer, call)
    run(module, loader(8), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    with pytest.warns(UserWarning, match=rf"{call}\(weights_only=False\) changes nothing") as told:
        run(module, loader(8), weights_only=False)
    assert told[0].filename == __file__
    with pytest.raises(pl.MisconfigurationError, match=rf"{call}\(weights_only='no'\)"):
        run(module, loader(8), weights_only="no")


def test_checkpoints_take_no_storage_options(tmp_path: Path) -> None:
    """Only local files are written; None, positional forms and weights alone work."""
    trainer, _ = trained(tmp_path)
    with pytest.raises(
        pl.MisconfigurationError, match=r"storage_options=\{'key': 1\}\): checkpoints are written"
    ):
        trainer.save_checkpoint(tmp_path / "c.ckpt", None, {"key": 1})
    trainer.save_checkpoint(tmp_path / "c.ckpt", True, None)
    assert "optimizer_states" not in torch.load(tmp_path / "c.ckpt", weights_only=True)


def test_modules_are_built_where_they_will_be() -> None:
    """`init_module` gives the device, and with `empty_init` spares the filling of weights."""
    trainer = quiet_trainer()
    torch.manual_seed(1)
    with trainer.init_module(empty_init=True):
        layer = nn.Linear(3, 3)
    untouched = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), untouched) and layer.weight.shape == (3, 3)
    with trainer.init_module():
        filled = nn.Linear(3, 3)
    assert filled.weight.abs().max() > 0 and filled.weight.device.type == "cpu"


def test_a_registry_of_models_is_refused() -> None:
    """`model_registry` belongs to one vendor's service."""
    with pytest.raises(TypeError, match=r"no argument 'model_registry'.*leave it out"):
        pl.Trainer(model_registry="x")


def test_states_are_the_strings_that_scripts_compare() -> None:
    """`trainer.state` says the call, its status and its stage in Lightning's words."""
    seen: list[tuple[str, str, str]] = []

    class Watches(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append((trainer.state.fn, trainer.state.status, trainer.state.stage))

        def on_test_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append((trainer.state.fn, trainer.state.status, trainer.state.stage))
            seen.append((trainer.num_test_batches, trainer.device_ids, trainer.interrupted))

    trainer = quiet_trainer(Watches())
    trainer.fit(Validated(), loader(8))
    trainer.test(Validated(), [loader(8), loader(4)], verbose=False)
    assert seen == [("fit", "running", "train"), ("test", "running", "test"), ([2, 1], [0], False)]
    assert trainer.state.status == "finished"
