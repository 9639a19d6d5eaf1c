"""What a call of an entry point leaves, asks for and restores, where Lightning's users rely on details."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint, WeightAveraging
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import CSVLogger
from tests.orchestrator.tiny import Tiny, Validated, loader, quiet_trainer, sgd


class Keeps(pl.Callback):
    """Has a state: how many epochs it has seen."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]


class Data(pl.LightningDataModule):
    """Has a state: a scale that setup for fit finds."""

    scale = 0.0

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.scale = 2.5

    def train_dataloader(self) -> Any:
        return loader(8)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_an_evaluation_from_a_checkpoint_has_the_states_of_data_and_callbacks(
    entry: str, tmp_path: Path
) -> None:
    """A new process that evaluates a checkpoint gets what data module and callbacks had kept in it."""
    path = tmp_path / "a.ckpt"
    trainer = quiet_trainer(Keeps(), max_epochs=3)
    trainer.fit(Validated(), datamodule=Data())
    trainer.save_checkpoint(path)
    data, callback = Data(), Keeps()
    getattr(quiet_trainer(callback), entry)(Validated(), datamodule=data, ckpt_path=path)
    assert (data.scale, callback.epochs) == (2.5, 3)


def test_testing_a_checkpoint_takes_nothing_back_of_training(tmp_path: Path) -> None:
    """After test(ckpt_path="best") ModelCheckpoint knows all it has saved; averages are tested."""
    saves = ModelCheckpoint(tmp_path, monitor="val_loss", mode="max", save_last=True)
    trainer = quiet_trainer(saves, max_epochs=3, enable_checkpointing=True)
    module, data = Validated(), loader(8)
    trainer.fit(module, data, data)
    before = saves.state_dict()
    trainer.test(module, data, ckpt_path="best", verbose=False)
    assert saves.state_dict() == before

    trainer = quiet_trainer(WeightAveraging(), max_epochs=2)
    trainer.fit(Validated(), data)
    path = tmp_path / "average.ckpt"
    trainer.save_checkpoint(path)
    module = Validated()
    quiet_trainer(WeightAveraging()).test(module, data, ckpt_path=path, verbose=False)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(item, saved[name]) for name, item in module.state_dict().items())


def test_evaluation_sends_hyperparameters_too(tmp_path: Path) -> None:
    """validate, test and predict of a fresh trainer record the hyperparameters, as fit does."""

    class Saved(Validated):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    logger = CSVLogger(tmp_path)
    quiet_trainer(logger=logger).test(Saved(), loader(8), verbose=False)
    assert "width: 3" in Path(logger.log_dir, "hparams.yaml").read_text()


def test_hyperparameters_of_one_name_must_agree(tmp_path: Path) -> None:
    """Module and data module may share a hyperparameter; two values of it are refused if logged."""

    class Sized(Tiny):
        def __init__(self, batch_size: int) -> None:
            super().__init__()
            self.save_hyperparameters()

    class SizedData(Data):
        def __init__(self, batch_size: int) -> None:
            super().__init__()
            self.save_hyperparameters()

    def trainer(**arguments: Any) -> pl.Trainer:
        return quiet_trainer(logger=CSVLogger(tmp_path), **arguments)

    trainer().fit(Sized(4), datamodule=SizedData(4))
    trainer(enable_autolog_hparams=False).fit(Sized(4), datamodule=SizedData(8))
    quiet_trainer().fit(Sized(4), datamodule=SizedData(8))
    with pytest.raises(MisconfigurationError, match=r"batch_size: 4 and 8.*Rename one"):
        trainer().fit(Sized(4), datamodule=SizedData(8))
    with pytest.raises(MisconfigurationError, match=r"batch_size: 4 and 4\.0"):
        trainer().fit(Sized(4), datamodule=SizedData(4.0))  # type: ignore[arg-type]


def test_optimizers_may_be_replaced_before_training() -> None:
    """trainer.optimizers set in on_fit_start are those that train; later, or elsewhere, they are refused."""

    class AtStart(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.0)]

    class TooLate(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.optimizers = []

    module = Tiny(sgd)
    before = [item.clone() for item in module.parameters()]
    trainer = quiet_trainer(AtStart())
    trainer.fit(module, loader(8))
    assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0
    with pytest.raises(MisconfigurationError, match="Set it in on_fit_start"):
        quiet_trainer(TooLate()).fit(Tiny(), loader(8))
    with pytest.raises(MisconfigurationError, match="Set it in on_fit_start"):
        quiet_trainer().optimizers = []


# What Lightning's users read from a Trainer: the type of each before a call, and after a fit with validation.
_READ: dict[str, tuple[Any, Any]] = {
    **dict.fromkeys(("global_step", "current_epoch", "world_size", "global_rank", "local_rank"), (int, int)),
    **dict.fromkeys(("node_rank", "num_nodes", "num_devices", "max_steps"), (int, int)),
    **dict.fromkeys(("log_every_n_steps", "accumulate_grad_batches", "num_sanity_val_steps"), (int, int)),
    **dict.fromkeys(("reload_dataloaders_every_n_epochs", "num_training_batches"), (int, int)),
    **dict.fromkeys(("max_epochs", "check_val_every_n_epoch"), (int, int)),
    **dict.fromkeys(("min_epochs", "min_steps", "datamodule", "scaler", "ckpt_path"), (type(None),) * 2),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), (type(None),) * 2),
    **dict.fromkeys(("is_last_batch",), (bool, bool)),
    **dict.fromkeys(("is_global_zero", "should_stop", "interrupted", "received_sigterm"), (bool, bool)),
    **dict.fromkeys(("training", "validating", "testing", "predicting", "sanity_checking"), (bool, bool)),
    **dict.fromkeys(("evaluating", "fast_dev_run", "barebones", "enable_validation"), (bool, bool)),
    **dict.fromkeys(("enable_autolog_hparams",), (bool, bool)),
    **dict.fromkeys(("callback_metrics", "logged_metrics", "progress_bar_metrics"), (dict, dict)),
    **dict.fromkeys(("num_val_batches", "num_test_batches", "num_predict_batches"), (list, list)),
    **dict.fromkeys(("num_sanity_val_batches", "loggers", "callbacks", "device_ids"), (list, list)),
    **dict.fromkeys(("checkpoint_callbacks", "early_stopping_callbacks"), (list, list)),
    **dict.fromkeys(("optimizers", "lr_scheduler_configs"), (list, list)),
    **dict.fromkeys(("log_dir", "default_root_dir", "precision"), (str, str)),
    **dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), (float, float)),
    **dict.fromkeys(("limit_predict_batches", "overfit_batches", "val_check_interval"), (float, float)),
    **dict.fromkeys(("checkpoint_callback", "early_stopping_callback", "logger"), (type(None),) * 2),
    **dict.fromkeys(("progress_bar_callback", "test_dataloaders", "predict_dataloaders"), (type(None),) * 2),
    **dict.fromkeys(("lightning_module", "model"), (type(None), pl.LightningModule)),
    **dict.fromkeys(("train_dataloader", "val_dataloaders"), (type(None), object)),
    "estimated_stepping_batches": (RuntimeError, int),
    "strategy": (object, object),
    "profiler": (object, object),
    "fit_loop": (object, object),
}


def test_what_users_read_is_there_with_its_type() -> None:
    """Each property has the type that scripts count on, before a call and after a fit."""
    trainer = quiet_trainer()
    for name, (before, _) in _READ.items():
        if before is RuntimeError:
            with pytest.raises(RuntimeError):
                getattr(trainer, name)
        else:
            assert isinstance(getattr(trainer, name), before), name
    trainer.fit(Validated(), loader(8), loader(8))
    for name, (_, after) in _READ.items():
        assert isinstance(getattr(trainer, name), after), name
    state = trainer.state
    assert (state.fn, state.status, state.finished, state.stopped) == ("fit", "finished", True, True)
