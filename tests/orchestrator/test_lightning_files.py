"""Checkpoints go both ways between Lightning and this project, as far as Lightning keeps what is needed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.checkpoint.lightning_loops import loops, place
from orchestrator.state import TrainState
from tests.orchestrator.tiny import assert_equal_weights, loader, loss_of, network, quiet_trainer

BATCHES = 4


@pytest.fixture
def lightning() -> Iterator[Any]:
    """Lightning, kept from talking; its warnings are its own."""
    found = pytest.importorskip("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield found


def module_of(framework: Any) -> Any:
    """A module class of `framework`, with an optimizer and a scheduler that have a state."""

    class Module(framework.LightningModule):  # type: ignore[misc]
        def __init__(self, rate: float = 0.05, scale: float = 1.0) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = network()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return loss_of(self.net, batch) * self.hparams.scale

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]

    return Module


def trainer_of(framework: Any, *callbacks: Any, **arguments: Any) -> Any:
    """A quiet trainer of `framework`."""
    if framework is orchestrator:
        return quiet_trainer(*callbacks, **arguments)
    return framework.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **arguments,
    )


def train(framework: Any, path: Path, save_at: int | None, epochs: int = 1) -> Any:
    """Train a module, saving after step `save_at`, or after all when None; return the module."""

    class Saves(framework.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == save_at:
                trainer.save_checkpoint(path)

    module = module_of(framework)(scale=2.0)
    trainer = trainer_of(framework, Saves(), max_epochs=epochs)
    trainer.fit(module, loader(4 * BATCHES))
    if save_at is None:
        trainer.save_checkpoint(path)
    return module


def go_on(framework: Any, path: Path) -> tuple[Any, Any]:
    """Train up to three epochs from the checkpoint `path`; return module and trainer."""
    module = module_of(framework)(scale=2.0)
    trainer = trainer_of(framework, max_epochs=3)
    trainer.fit(module, loader(4 * BATCHES), ckpt_path=path)
    return module, trainer


@pytest.mark.extras
@pytest.mark.parametrize("save_at", [BATCHES, None], ids=["last-batch", "after-fit"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_the_other_one_goes_on_after_an_epoch(
    lightning: Any, tmp_path: Path, ours_first: bool, save_at: int | None
) -> None:
    """From the end of an epoch each goes on from the other's file, to the weights of an unbroken run."""
    first, second = (orchestrator, lightning) if ours_first else (lightning, orchestrator)
    whole = train(orchestrator, tmp_path / "unused.ckpt", save_at=-1, epochs=3)
    train(first, tmp_path / "a.ckpt", save_at)
    module, trainer = go_on(second, tmp_path / "a.ckpt")
    assert (trainer.global_step, trainer.current_epoch) == (3 * BATCHES, 3)
    assert_equal_weights(module.net, whole.net)


@pytest.mark.extras
@pytest.mark.parametrize("ours_first", [True, False])
def test_the_other_one_goes_on_by_hand(lightning: Any, tmp_path: Path, ours_first: bool) -> None:
    """With two optimizers stepped by hand each goes on from the other's file, to the same weights."""

    def by_hand(framework: Any) -> Any:
        class ByHand(framework.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False
                self.net = network()

            def training_step(self, batch: Any, batch_idx: int) -> None:
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                    self.manual_backward(loss_of(self.net, batch))
                    optimizer.step()

            def configure_optimizers(self) -> Any:
                return [torch.optim.Adam(self.net[index].parameters(), lr=0.01) for index in (0, 3)]

        return ByHand()

    def run(framework: Any, epochs: int, ckpt_path: Path | None = None) -> tuple[Any, Any]:
        module, trainer = by_hand(framework), trainer_of(framework, max_epochs=epochs)
        trainer.fit(module, loader(4 * BATCHES), ckpt_path=ckpt_path)
        return module, trainer

    first, second = (orchestrator, lightning) if ours_first else (lightning, orchestrator)
    whole, _ = run(orchestrator, 3)
    _, trainer = run(first, 1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module, trainer = run(second, 3, tmp_path / "a.ckpt")
    assert trainer.global_step == 2 * 3 * BATCHES
    assert_equal_weights(module.net, whole.net)
    if not ours_first:
        assert trainer.state.windows == 3 * BATCHES


@pytest.mark.extras
def test_lightning_goes_on_in_the_middle_of_our_epoch(lightning: Any, tmp_path: Path) -> None:
    """From the middle of an epoch Lightning makes the steps that are left."""
    train(orchestrator, tmp_path / "a.ckpt", save_at=3)
    _, trainer = go_on(lightning, tmp_path / "a.ckpt")
    assert (trainer.global_step, trainer.current_epoch) == (3 * BATCHES, 3)


@pytest.mark.extras
def test_we_begin_lightnings_epoch_again(lightning: Any, tmp_path: Path) -> None:
    """From the middle of Lightning's epoch, whose samples are not known, we begin it again and say so."""
    train(lightning, tmp_path / "a.ckpt", save_at=3)
    with pytest.warns(UserWarning, match="after 3 batches of epoch 0.*this epoch starts again"):
        _, trainer = go_on(orchestrator, tmp_path / "a.ckpt")
    assert (trainer.global_step, trainer.current_epoch) == (3 + 3 * BATCHES, 3)


@pytest.mark.extras
@pytest.mark.parametrize("weights_only", [True, False])
def test_modules_load_the_others_files(lightning: Any, tmp_path: Path, weights_only: bool) -> None:
    """load_from_checkpoint of each reads hyperparameters and weights from the other's file."""
    for writer, reader in ((orchestrator, lightning), (lightning, orchestrator)):
        trainer, module = trainer_of(writer, max_epochs=1), module_of(writer)(rate=0.125)
        trainer.fit(module, loader(4))
        trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only)
        loaded = module_of(reader).load_from_checkpoint(tmp_path / "a.ckpt", scale=3.0)
        assert_equal_weights(loaded.net, module.net)
        assert (loaded.hparams.rate, loaded.hparams.scale) == (0.125, 3.0)


@pytest.mark.extras
def test_the_loss_scale_comes_along(lightning: Any, tmp_path: Path) -> None:
    """The state of fp16's loss scaling is taken from Lightning's key."""
    trainer = quiet_trainer(precision="16-mixed")
    module = module_of(orchestrator)()
    trainer.fit(module, loader(8))
    content = trainer.dump_checkpoint()
    scaler = content.pop("orchestrator")["scaler"]
    content["MixedPrecision"] = {**scaler, "scale": 64.0}
    torch.save(content, tmp_path / "a.ckpt")
    more = quiet_trainer(precision="16-mixed", max_epochs=2)
    more.fit(module_of(orchestrator)(), loader(8), ckpt_path=tmp_path / "a.ckpt")
    engine: Any = more.engine
    assert engine.precision.state_dict()["scale"] == 64.0


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The paths and types of all values in nested dictionaries."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    else:
        yield path, type(value)


@pytest.mark.extras
def test_the_counters_are_those_that_lightning_writes(lightning: Any, tmp_path: Path) -> None:
    """What we write under "loops" has every key, and each type, of what Lightning writes."""
    train(lightning, tmp_path / "a.ckpt", None)
    theirs = torch.load(tmp_path / "a.ckpt", weights_only=True)["loops"]
    ours = dict(leaves(loops(TrainState(), is_last_batch=True)))
    assert set(leaves(theirs)) <= set(ours.items())


def test_the_counters_say_where_training_stands() -> None:
    """In an epoch one more has begun than has been completed; at its end it has been processed."""
    middle = TrainState(epoch=2, global_step=11, past_batches=8, epoch_batches=3, validated=True)
    ended = TrainState(epoch=2, global_step=12, past_batches=8, epoch_batches=4, epoch_ended=True)
    between = TrainState(epoch=3, global_step=12, past_batches=12)
    found = []
    for state in (middle, ended, between):
        fit = loops(state, is_last_batch=state is not middle)["fit_loop"]
        batches = fit["epoch_loop.batch_progress"]
        epochs = tuple(fit["epoch_progress"]["total"].values())
        found.append((epochs, batches["total"]["ready"], batches["current"]["completed"]))
    assert found == [((3, 3, 2, 2), 11, 3), ((3, 3, 3, 2), 12, 4), ((3, 3, 3, 3), 12, 0)]


def test_where_lightning_stood_is_read_from_its_counters() -> None:
    """Epochs that have ended are counted, and batches of one that runs."""

    def place_of(started: int, processed: int, is_last_batch: bool) -> tuple[int, int]:
        epochs = {"current": {"started": started, "processed": processed}}
        batches = {"current": {"processed": 3}, "is_last_batch": is_last_batch}
        loop = {"epoch_progress": epochs, "epoch_loop.batch_progress": batches}
        return place({"epoch": 0, "loops": {"fit_loop": loop}})

    assert place_of(3, 2, False) == (2, 3)  # in the third epoch
    assert place_of(3, 2, True) == (3, 0)  # in hooks after its last batch
    assert place_of(3, 3, True) == (3, 0)  # at its end, or after training
    assert place({"epoch": 4}) == (5, 0)  # of an old version, which saved at ends of epochs


def data_of(framework: Any) -> Any:
    """A data module class of `framework`, with hyperparameters and a state."""

    class Data(framework.LightningDataModule):  # type: ignore[misc]
        def __init__(self, size: int = 16) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.seen = 0

        def train_dataloader(self) -> Any:
            return loader(self.hparams.size)

        def val_dataloader(self) -> Any:
            return loader(8)

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.seen = state_dict["seen"]

    return Data


def fit_with_callbacks(framework: Any, folder: Path, epochs: int, ckpt_path: Path | None = None) -> Any:
    """Train with validation, a data module, checkpoints and early stopping; return what holds a state."""

    class Module(module_of(framework)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", loss_of(self.net, batch))

    data = data_of(framework)()
    data.seen = 5 if ckpt_path is None else 0
    saves = framework.callbacks.ModelCheckpoint(folder, monitor="val_loss", save_top_k=2, save_last=True)
    stops = framework.callbacks.EarlyStopping("val_loss", patience=9)
    trainer = trainer_of(framework, num_sanity_val_steps=0, max_epochs=epochs)
    trainer.callbacks[:] = [stops, saves]
    module = Module()
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, data, saves, stops


@pytest.mark.extras
@pytest.mark.parametrize("ours_first", [True, False])
def test_states_of_callbacks_and_data_come_along(lightning: Any, tmp_path: Path, ours_first: bool) -> None:
    """Weights, the best checkpoints, early stopping and the data module go on from the other's file as from
    one's own.
    """
    first, second = (orchestrator, lightning) if ours_first else (lightning, orchestrator)
    _, _, before, _ = fit_with_callbacks(first, tmp_path, 2)
    score = float(before.best_model_score)
    module, data, saves, stops = fit_with_callbacks(second, tmp_path, 4, tmp_path / "last.ckpt")
    whole, _, alone, _ = fit_with_callbacks(orchestrator, tmp_path / "whole", 4)
    assert_equal_weights(module.net, whole.net)
    assert data.seen == 5
    assert sorted(float(value) for value in saves.best_k_models.values()) == pytest.approx(
        sorted(float(value) for value in alone.best_k_models.values())
    )
    assert float(stops.best_score) == pytest.approx(float(alone.best_model_score))
    assert float(saves.best_model_score) <= score


@pytest.mark.extras
def test_data_modules_load_the_others_files(lightning: Any, tmp_path: Path) -> None:
    """load_from_checkpoint of a data module reads hyperparameters and state from the other's file."""
    for writer, reader in ((orchestrator, lightning), (lightning, orchestrator)):
        data = data_of(writer)(size=8)
        data.seen = 3
        trainer = trainer_of(writer, max_epochs=1)
        trainer.fit(module_of(writer)(), datamodule=data)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        loaded = data_of(reader).load_from_checkpoint(tmp_path / "a.ckpt")
        assert (loaded.hparams.size, loaded.seen) == (8, 3)


class Custom:
    """A hyperparameter that only running code could make."""


@pytest.mark.extras
def test_lightnings_files_with_objects_are_gone_on_from(lightning: Any, tmp_path: Path) -> None:
    """Where Lightning refuses a file for a hyperparameter of a class of one's own, we go on without it."""

    def holds(framework: Any) -> Any:
        class Holds(module_of(framework)):  # type: ignore[misc]
            def __init__(self, rate: float = 0.05, scale: float = 1.0, thing: Any = None) -> None:
                super().__init__(rate, scale)

        return Holds

    trainer = trainer_of(lightning, max_epochs=1)
    trainer.fit(holds(lightning)(thing=Custom()), loader(16))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        trainer_of(lightning, max_epochs=2).fit(
            holds(lightning)(), loader(16), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )
    ours = quiet_trainer(max_epochs=2)
    with pytest.warns(UserWarning, match=r"left out|holds objects.*hyper_parameters\.thing \(.*Custom\)"):
        ours.fit(holds(orchestrator)(), loader(16), ckpt_path=tmp_path / "a.ckpt")
    assert ours.global_step == 8
    with pytest.warns(UserWarning, match=r"hyper_parameters\.thing \("):
        assert holds(orchestrator).load_from_checkpoint(tmp_path / "a.ckpt").hparams.rate == 0.05


def test_the_file_has_the_keys_that_lightning_writes(tmp_path: Path) -> None:
    """A checkpoint of module and data module has every key of Lightning's, and one of weights only leaves out
    what only training needs.
    """
    trainer = quiet_trainer()
    trainer.fit(module_of(orchestrator)(), datamodule=data_of(orchestrator)())
    whole, weights = trainer.dump_checkpoint(), trainer.dump_checkpoint(weights_only=True)
    kept = {"epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops"} | {
        f"{prefix}{name}"
        for prefix in ("", "datamodule_")
        for name in ("hparams_name", "hparams_type", "hyper_parameters")
    }
    assert set(weights) == kept
    assert set(whole) - kept == {
        "callbacks",
        "optimizer_states",
        "lr_schedulers",
        "orchestrator",
        "data_of.<locals>.Data",
    }
