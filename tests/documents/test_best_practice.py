"""The article that goes from a first MNIST module to callbacks, loggers, several devices and precisions.

Its blocks have lost their line breaks and get them back. Left out there and completed here: a small module
for the blocks that only make a Trainer, and data for the data module of which only the outline is printed.
Where it asks for GPUs: the one error, and the block with the accelerator replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader

import orchestrator as pl
from cluster import PlacementError
from orchestrator import Trainer
from orchestrator.callbacks import EarlyStopping, ModelCheckpoint
from tests.documents.torchvision_stand_in import MNIST, ToTensor

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is an older form:FutureWarning",
    "ignore:.*16-mixed.*:UserWarning",  # on CPUs it becomes bf16-mixed, and says so
)
WITHOUT_GPUS = pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
ON_CPUS: dict[str, Any] = {"accelerator": "cpu", "resources_per_worker": {"CPU": 0.5}}


class MNISTModel(pl.LightningModule):
    def __init__(self, hidden_dim=64, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(28 * 28, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 10)
        )
        self.train_acc = pl.metrics.Accuracy()
        self.val_acc = pl.metrics.Accuracy()

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("train_loss", loss, prog_bar=True)
        self.train_acc(logits, y)
        self.log("train_acc", self.train_acc, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("val_loss", loss, prog_bar=True)
        self.val_acc(logits, y)
        self.log("val_acc", self.val_acc, prog_bar=True, on_step=False, on_epoch=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def train_dataloader(self):
        return DataLoader(
            MNIST("./data", train=True, download=True, transform=ToTensor()),
            batch_size=32,
            shuffle=True,
            num_workers=4,
        )

    def val_dataloader(self):
        return DataLoader(
            MNIST("./data", train=False, download=True, transform=ToTensor()), batch_size=32, num_workers=4
        )


class MNISTDataModule(pl.LightningDataModule):
    """The article's outline, completed."""

    def train_dataloader(self):
        return DataLoader(MNIST("./data", transform=ToTensor()), batch_size=16)

    def val_dataloader(self):
        return DataLoader(MNIST("./data", train=False, transform=ToTensor()), batch_size=16)


class Small(pl.LightningModule):
    """Completes the blocks that show a Trainer alone: logs what their callbacks watch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.trainer.is_global_zero:
            print("said once")
        return F.cross_entropy(self.layers(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.layers(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def callbacks() -> tuple[ModelCheckpoint, EarlyStopping]:
    """The article's two."""
    checkpoint_callback = ModelCheckpoint(
        monitor="val_acc",
        mode="max",
        save_top_k=1,
        dirpath="./checkpoints/",
        filename="mnist-best-{epoch:02d}-{val_acc:.2f}",
    )
    early_stop_callback = EarlyStopping(monitor="val_loss", mode="min", patience=3)
    return checkpoint_callback, early_stop_callback


def trains(trainer: Trainer, steps: int) -> None:
    """`trainer` makes so many steps with the small module and changes its weights."""
    model = Small()
    before = model.layers[1].weight.detach().clone()
    trainer.fit(model, datamodule=MNISTDataModule())
    assert trainer.global_step == steps
    assert not torch.equal(model.layers[1].weight, before)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_the_first_module_trains() -> None:
    """Hyperparameters, metric objects, a scheduler and loaders of the module's own, with default Trainer."""
    model = MNISTModel(hidden_dim=128, lr=5e-4)
    trainer = Trainer(max_epochs=5, accelerator="auto", devices="auto", logger=True, enable_progress_bar=True)
    trainer.fit(model)
    assert trainer.global_step == 5 * 3
    assert trainer.callback_metrics.keys() >= {"train_loss", "train_acc", "val_loss", "val_acc"}
    assert 0 <= trainer.callback_metrics["val_acc"] <= 1
    assert model.hparams == {"hidden_dim": 128, "lr": 5e-4}
    assert list(Path("lightning_logs/version_0").glob("events.out.tfevents.*"))


def test_callbacks_save_and_stop() -> None:
    """The best checkpoint carries its epoch and metric in its name."""
    checkpoint_callback, early_stop_callback = callbacks()
    trainer = Trainer(
        max_epochs=20, callbacks=[checkpoint_callback, early_stop_callback], accelerator="cpu", devices=1
    )
    trainer.fit(Small(), datamodule=MNISTDataModule())
    assert trainer.current_epoch <= 20 and early_stop_callback.best_score < 3
    (saved,) = Path("checkpoints").iterdir()
    assert saved.name.startswith("mnist-best-epoch=") and ".ckpt" in saved.name and "val_acc=" in saved.name


@WITHOUT_GPUS
def test_a_gpu_that_is_not_there_is_one_error() -> None:
    """One GPU that torch does not see is refused before anything starts, with or without a precision."""
    for arguments in ({"devices": 1, "max_epochs": 20}, {"precision": 16, "max_epochs": 10}):
        with pytest.raises(pl.MisconfigurationError, match=r"torch sees no GPU.*accelerator='cpu'"):
            Trainer(accelerator="gpu", callbacks=list(callbacks()), **arguments)


@pytest.mark.extras
def test_another_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases takes the place of TensorBoard; without an account in its offline mode."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    from orchestrator.loggers import WandbLogger

    wandb_logger = WandbLogger(project="mnist-pl", name="mlp-experiment")
    trainer = Trainer(logger=wandb_logger, max_epochs=5)
    try:
        trains(trainer, 5 * 3)
        assert wandb_logger.name == "mnist-pl"
    finally:
        wandb.teardown()


@pytest.mark.ray
@WITHOUT_GPUS
def test_two_gpus_that_are_not_there_are_one_error() -> None:
    """DDP on two GPUs says what was asked for and what there is."""
    trainer = Trainer(
        max_epochs=10, accelerator="gpu", devices=2, strategy="ddp_find_unused_parameters_false"
    )
    with pytest.raises(PlacementError, match=r"asked 2 x \{CPU: 1, GPU: 1\}.*\n.*GPU: 0"):
        trainer.fit(Small(), datamodule=MNISTDataModule())


@pytest.mark.ray
def test_ddp_on_two_devices() -> None:
    """The strategy's long name trains on two workers."""
    trains(Trainer(max_epochs=2, devices=2, strategy="ddp_find_unused_parameters_false", **ON_CPUS), 2 * 3)


def test_mixed_precision() -> None:
    """`precision=16` trains."""
    trains(Trainer(max_epochs=10, accelerator="cpu", precision=16), 10 * 3)


@pytest.mark.ray
def test_mixed_precision_on_two_devices() -> None:
    """`precision=16` and DDP go together."""
    trains(Trainer(precision=16, devices=2, strategy="ddp", max_epochs=1, **ON_CPUS), 3)


def test_mixed_precision_and_accumulation() -> None:
    """`precision=16` and accumulation go together; the last window of the epoch closes with it."""
    trains(Trainer(precision=16, accumulate_grad_batches=4, max_epochs=2), 2)


def test_a_quick_trial() -> None:
    """`fast_dev_run=True` runs one batch."""
    trains(Trainer(fast_dev_run=True), 1)


def test_accumulation() -> None:
    """Four batches make a step."""
    trains(Trainer(accumulate_grad_batches=4, limit_train_batches=8, max_epochs=1), 2)
