"""The article that goes through module, Trainer and data module one by one.

Left out there and completed here: data for the modules that are shown without, and batches that fit the
regression (images as rows, labels as numbers).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from orchestrator import LightningDataModule, LightningModule, Trainer
from orchestrator.loggers import TensorBoardLogger
from tests.documents.torchvision_stand_in import MNIST, transforms

pytestmark = pytest.mark.filterwarnings("ignore:.*is an older form:FutureWarning")


class LinearRegression(LightningModule):
    def __init__(self, input_dim=10, output_dim=1):
        super().__init__()
        self.linear = nn.Linear(input_dim, output_dim)

    def forward(self, x):
        return self.linear(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self(x)
        loss = F.mse_loss(y_hat, y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self(x)
        loss = F.mse_loss(y_hat, y)
        self.log("val_loss", loss)

    def test_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self(x)
        loss = F.mse_loss(y_hat, y)
        self.log("test_loss", loss)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return optimizer


class MNISTDataModule(LightningDataModule):
    def __init__(self, data_dir="./data", batch_size=32):
        super().__init__()
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
        )

    def prepare_data(self):
        MNIST(self.data_dir, train=True, download=True)
        MNIST(self.data_dir, train=False, download=True)

    def setup(self, stage=None):
        mnist_train = MNIST(self.data_dir, train=True, transform=self.transform)
        mnist_test = MNIST(self.data_dir, train=False, transform=self.transform)
        self.train_dataset, self.val_dataset = random_split(mnist_train, [55000, 5000])
        self.test_dataset = mnist_test

    def train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_dataset, batch_size=self.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test_dataset, batch_size=self.batch_size)


class MyModel(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 1)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self(x)
        loss = F.mse_loss(y_hat, y)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class MyDataModule(LightningDataModule):
    def setup(self, stage=None):
        dataset = MNIST(root="./data", train=True, download=True, transform=transforms.ToTensor())
        self.train_dataset, self.val_dataset = random_split(dataset, [55000, 5000])

    def train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=32)

    def val_dataloader(self):
        return DataLoader(self.val_dataset, batch_size=32)


class Rows(MNISTDataModule):
    """Completes the article's: what a regression on images takes."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return images.flatten(1), labels.float().unsqueeze(1)


class FlatDigits(MyDataModule):
    """Completes the article's for its module of ten inputs."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return images.flatten(1)[:, 300:310], labels.float().unsqueeze(1)


def numbers() -> DataLoader[Any]:
    """Completes modules that are shown without data."""
    return DataLoader(TensorDataset(torch.randn(64, 10), torch.randn(64, 1)), batch_size=8)


def test_a_trainer_with_gpus_and_a_logger() -> None:
    """`gpus=` chosen by what is there trains, and the named logger has its directory."""
    model = LinearRegression()
    logger = TensorBoardLogger("logs/", name="linear_regression")

    trainer = Trainer(
        max_epochs=10,
        gpus=1 if torch.cuda.is_available() else 0,
        logger=logger,
        check_val_every_n_epoch=1,
        log_every_n_steps=50,
    )
    before = model.linear.weight.detach().clone()
    trainer.fit(model, numbers(), numbers())

    assert trainer.global_step == 10 * 3
    assert not torch.equal(model.linear.weight, before)
    assert {"train_loss", "val_loss"} <= trainer.callback_metrics.keys()
    assert logger.log_dir.endswith("logs/linear_regression/version_0")


def test_the_smallest_module_trains() -> None:
    """A module with a training step and an optimizer needs nothing else."""
    model = MyModel()
    trainer = Trainer(max_epochs=10)
    trainer.fit(model, numbers())
    assert trainer.current_epoch == 10


def test_the_smallest_data_module_trains() -> None:
    """A data module that only splits and serves is enough."""
    model = MyModel()
    trainer = Trainer(max_epochs=2)
    trainer.fit(model, FlatDigits())
    assert trainer.global_step == 2 * 3


def test_the_whole_way_with_a_data_module() -> None:
    """fit, validate and test take the data module by position, and give their metrics."""
    model = LinearRegression(784)
    data_module = Rows(batch_size=64)

    trainer = Trainer(
        max_epochs=10, gpus=1 if torch.cuda.is_available() else 0, logger=TensorBoardLogger("logs/")
    )
    trainer.fit(model, data_module)

    (validated,) = trainer.validate(model, data_module)
    (tested,) = trainer.test(model, data_module)
    assert validated.keys() == {"val_loss"} and tested.keys() == {"test_loss"}
