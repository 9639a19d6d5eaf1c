"""A sweep over a module's arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.module_training import module_training


class Net(pl.LightningModule):
    """Takes two arguments."""

    def __init__(self, width: int, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["rate"])


class Data(pl.LightningDataModule):
    """Takes the size of a batch."""

    made: tuple[int, ...] = ()

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        Data.made += (self.batch_size,)
        return DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=self.batch_size)


def test_each_name_goes_to_who_takes_it() -> None:
    """The module first, then the class of the data, and ``trainer.NAME`` to the Trainer."""
    names = ["width", "rate", "batch_size", "trainer.max_epochs"]
    training = module_training(Net, names, Data, {"logger": False})
    parts = training.split({"width": 3, "rate": 0.5, "batch_size": 4, "trainer.max_epochs": 2})
    assert parts == {
        "module": {"width": 3, "rate": 0.5}, "datamodule": {"batch_size": 4}, "trainer": {"max_epochs": 2},
    }  # fmt: skip


def test_a_trial_builds_and_fits() -> None:
    """What a trial calls is a whole training."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    training = module_training(Net, ["width", "batch_size"], Data, {**quiet, "max_epochs": 1})
    Data.made = ()
    training({"width": 3, "batch_size": 4})
    assert Data.made == (4,)


def test_a_name_that_nobody_takes_is_refused_with_the_nearest() -> None:
    """Before anything starts; what the module needs and the space lacks is refused too."""
    with pytest.raises(MisconfigurationError, match=r"Net takes no 'widht'\. Did you mean 'width'\?"):
        module_training(Net, ["widht"], None, None)
    with pytest.raises(MisconfigurationError, match=r"Net and Data take no 'batchsize'.*'batch_size'"):
        module_training(Net, ["width", "batchsize"], Data, None)
    with pytest.raises(MisconfigurationError, match="lacks width, which Net needs"):
        module_training(Net, ["rate"], None, None)


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    """Data that is no data module, and a Trainer where its arguments belong."""
    wrong: Any = 3
    with pytest.raises(MisconfigurationError, match="datamodule=3"):
        module_training(Net, ["width"], wrong, None)
    with pytest.raises(MisconfigurationError, match="Give the Trainer's arguments"):
        module_training(Net, ["width"], None, wrong)
    with pytest.raises(MisconfigurationError, match="goes with the class of a LightningModule"):
        pl.Sweep(print, {}, metric="loss", trainer={"max_epochs": 1})


def test_a_module_s_sweep_reserves_what_its_trainer_asks_for() -> None:
    """Two devices are two workers; a reservation that disagrees is refused, and so is a bad argument."""
    sweep = pl.Sweep(Net, {"width": 3}, metric="loss", trainer={"accelerator": "cpu", "devices": 2})
    assert len(sweep.room.workers) == 2
    with pytest.raises(MisconfigurationError, match=r"reserves 0 workers .* asks for 2"):
        pl.Sweep(
            Net, {"width": 3}, metric="loss", resources_per_trial={"CPU": 1},
            trainer={"accelerator": "cpu", "devices": 2},
        )  # fmt: skip
    with pytest.raises(TypeError, match="'max_epochs'"):
        pl.Sweep(Net, {"width": 3}, metric="loss", trainer={"max_epoch": 2})
