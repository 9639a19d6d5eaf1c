"""A fit on a group goes through the loss of workers: bit for bit as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import orchestrator as pl
from cluster import WorkerDied
from orchestrator.callbacks import Callback, EarlyStopping, ModelCheckpoint

pytestmark = pytest.mark.ray
ROWS, FEATURES = 66, 6


class Points(Dataset[tuple[Tensor, Tensor]]):
    """Samples with a random augmentation, drawn where they are read."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(ROWS, FEATURES, generator=generator)
        self.y = self.x.sum(1, keepdim=True)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = 0.01 * torch.randn(FEATURES) + 0.01 * random.random() + 0.01 * float(np.random.rand())
        return self.x[index] + noise, self.y[index]


class Net(pl.LightningModule):
    """Has all that a rank may have for itself: dropout, batch statistics, metrics, a schedule; and dies.

    Args:
        fault: (place, rank, step): where which rank ends itself, once; None nowhere.
        mark: A file that is there once it has.
    """

    def __init__(self, fault: tuple[str, int, int] | None = None, mark: Path = Path("unused")) -> None:
        super().__init__()
        self.fault, self.mark = fault, mark
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
        )

    def die(self, place: str) -> None:
        """End this process, where the fault says so."""
        if self.fault != (place, self.trainer.global_rank, self.trainer.global_step) or self.mark.exists():
            return
        self.mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.die("forward")
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def on_after_backward(self) -> None:
        self.die("after backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.die("before step")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.die("batch end")
        self.log("noise", float(torch.rand(())), on_epoch=True, on_step=False, sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.die("sanity" if self.trainer.sanity_checking else "validation")
        self.log("val", nn.functional.mse_loss(self.net(batch[0]), batch[1]), sync_dist=True)

    def on_train_epoch_end(self) -> None:
        self.die("epoch end")

    def on_train_epoch_start(self) -> None:
        self.die("epoch start")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3), "interval": "step"}]


class ByHand(Net):
    """Steps its optimizer itself, so a step cannot be undone."""

    def __init__(self, fault: tuple[str, int, int] | None = None, mark: Path = Path("unused")) -> None:
        super().__init__(fault, mark)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class Pids(Callback):
    """Notes each rank's process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        (self.directory / f"{trainer.global_rank}.{os.getpid()}").touch()


def fit(
    root: Path,
    ranks: int,
    fault: tuple[str, int, int] | None = None,
    kind: type[Net] = Net,
    **arguments: Any,
) -> dict[str, Any]:
    """Train, and return what identifies the result."""
    pids = root / "pids"
    pids.mkdir(parents=True)
    pl.seed_everything(3, verbose=False)
    module = kind(fault, root / "mark")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        resources_per_worker={"CPU": 0.1},
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=pl.loggers.CSVLogger(root),
        start_timeout_s=300,
        max_epochs=3,
        log_every_n_steps=4,
        callbacks=[
            Pids(pids),
            EarlyStopping("val", patience=5),
            ModelCheckpoint(dirpath=root / "ckpt", monitor="val", save_top_k=2),
        ],
        **arguments,
    )
    trainer.fit(
        module,
        DataLoader(Points(), batch_size=4, shuffle=True),
        DataLoader(Points(), batch_size=16),
    )
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    assert fault is None or (root / "mark").exists()
    return {
        "weights": digest.hexdigest(),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "steps": trainer.global_step,
        "samples": trainer.samples_seen,
        "files": sorted(path.name for path in (root / "ckpt").iterdir()),
        "rows": (Path(trainer.log_dir or "") / "metrics.csv").read_text().splitlines(),
        "rng": float(torch.rand(())),
        "processes": sorted(int(path.name.partition(".")[0]) for path in pids.iterdir()),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run without a loss."""
    return fit(tmp_path_factory.mktemp("undisturbed"), 3)


@pytest.mark.parametrize(
    "fault",
    [
        ("batch end", 2, 1),
        ("forward", 1, 3),
        pytest.param(("after backward", 0, 3), marks=pytest.mark.slow),
        pytest.param(("before step", 2, 4), marks=pytest.mark.slow),
        pytest.param(("batch end", 1, 3), marks=pytest.mark.slow),
        ("batch end", 0, 4),
        ("validation", 1, 6),
        pytest.param(("epoch end", 2, 6), marks=pytest.mark.slow),
        ("epoch start", 0, 6),
    ],
    ids=lambda fault: "-".join(map(str, fault)),
)
def test_a_killed_worker_leaves_no_trace(
    undisturbed: dict[str, Any], fault: tuple[str, int, int], tmp_path: Path
) -> None:
    """Wherever in a step or between steps a worker is killed, weights, metrics, files and random states are
    those of the undisturbed run, and only the lost rank has had two processes.
    """
    found = fit(tmp_path, 3, fault, spares=1)
    processes = found.pop("processes")
    assert processes == sorted([0, 1, 2, fault[1]])
    expected = {name: value for name, value in undisturbed.items() if name != "processes"}
    assert found == expected


def test_what_cannot_be_undone_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """With manual optimization the run goes on by itself from the newest checkpoint, on the same processes
    but for the lost one, and comes to the same weights.
    """
    undisturbed = fit(tmp_path / "undisturbed", 3, kind=ByHand)
    found = fit(tmp_path / "lost", 3, ("forward", 1, 8), kind=ByHand, spares=1)
    assert found["weights"] == undisturbed["weights"]
    assert found["steps"] == undisturbed["steps"]
    assert sorted(set(found["processes"])) == [0, 1, 2]


def test_a_loss_before_the_first_step_begins_again(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Where nothing was trained yet the run begins anew, with the numbers of one that lost nobody."""
    found = fit(tmp_path / "lost", 3, ("sanity", 1, 0), spares=1)
    expected = {name: value for name, value in undisturbed.items() if name != "processes"}
    assert {name: found[name] for name in expected} == expected


def test_the_budget_of_failures_ends_the_run(tmp_path: Path) -> None:
    """With max_failures=0 the loss is raised, as where nothing recovers."""
    with pytest.raises(WorkerDied, match="rank 1 of 3"):
        fit(tmp_path, 3, ("forward", 1, 3), max_failures=0)
