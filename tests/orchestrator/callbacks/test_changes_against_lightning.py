"""The callbacks that change training or follow it do to the bit what Lightning's do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import orchestrator as pl
from tests.orchestrator.callbacks.test_learning_rate_monitor import Rows
from tests.orchestrator.tiny import loader, loss_of, network

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def lightning() -> Iterator[Any]:
    """Lightning's package, silent."""
    package = pytest.importorskip("lightning.pytorch")
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    yield package
    log.setLevel(level)


def module_of(package: Any, scheduled: bool) -> Any:
    """A backbone and a head, the same under both packages."""

    class Model(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            net = network()
            self.backbone, self.head = nn.Sequential(net[0]), nn.Sequential(*net[1:])
            self.seen: list[float] = []

        def forward(self, inputs: Any) -> Any:
            return self.head(self.backbone(inputs))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return loss_of(self, batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(loss_of(self, batch).item())

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam([item for item in self.parameters() if item.requires_grad], lr=0.1)
            if not scheduled:
                return optimizer
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)]

    return Model()


def run(package: Any, callback: Any, root: Path, scheduled: bool = False, **arguments: Any) -> Any:
    module = module_of(package, scheduled)
    settings: dict[str, Any] = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "default_root_dir": root,
        "num_sanity_val_steps": 0,
        **arguments,
    }
    package.Trainer(callbacks=[callback], **settings).fit(module, loader(12), loader(4))
    return module


CASES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "mean": ("WeightAveraging", (), {}),
    "moving": ("EMAWeightAveraging", (), {"decay": 0.8}),
    "moving, seldom": ("EMAWeightAveraging", (), {"decay": 0.8, "update_every_n_steps": 2}),
    "moving, by epoch": ("EMAWeightAveraging", (), {"decay": 0.8, "update_starting_at_epoch": 1}),
    "stochastic": ("StochasticWeightAveraging", (0.02,), {}),
    "stochastic, early": (
        "StochasticWeightAveraging",
        ([0.02],),
        {"swa_epoch_start": 2, "annealing_epochs": 2},
    ),
    "stochastic, linear": (
        "StochasticWeightAveraging",
        (0.02,),
        {"swa_epoch_start": 0.25, "annealing_strategy": "linear"},
    ),
    "thawed": ("BackboneFinetuning", (2,), {}),
    "thawed, fast": ("BackboneFinetuning", (1,), {"backbone_initial_lr": 0.03, "should_align": False}),
    "accumulated": ("GradientAccumulationScheduler", ({1: 3},), {}),
    # Lightning's module and its copy of the first values share memory after the first time.
    "pruned": (
        "ModelPruning",
        ("l1_unstructured",),
        {"amount": 0.2, "use_lottery_ticket_hypothesis": lambda epoch: epoch == 0},
    ),
    "pruned, no lottery": (
        "ModelPruning",
        ("l1_unstructured",),
        {"amount": 5, "use_lottery_ticket_hypothesis": False},
    ),
}


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_weights_are_lightnings(lightning: Any, tmp_path: Path, name: str, scheduled: bool) -> None:
    """After four epochs, and in every validation between, weights and losses are equal to the bit."""
    kind, arguments, options = CASES[name]
    theirs, ours = (
        run(package, getattr(package.callbacks, kind)(*arguments, **options), tmp_path, scheduled)
        for package in (lightning, pl)
    )
    assert ours.seen == theirs.seen
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("interval", [None, "step", "epoch"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_learning_rates_are_lightnings(
    lightning: Any, tmp_path: Path, interval: str | None, scheduled: bool
) -> None:
    """The same names and values are logged at the same steps; what Lightning logs twice, once."""
    from lightning.pytorch.loggers import CSVLogger as Theirs

    class Kept(Theirs):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            self.rows.append((step, dict(metrics)))

    found = []
    for package, logger in ((lightning, Kept(tmp_path / "a")), (pl, Rows(tmp_path / "b"))):
        logger.rows = []
        monitor = package.callbacks.LearningRateMonitor(interval, log_momentum=True, log_weight_decay=True)
        run(package, monitor, tmp_path, scheduled, logger=logger, log_every_n_steps=1)
        rows = [row for row in logger.rows if any(name.startswith("lr-") for name in row[1])]
        found.append([row for index, row in enumerate(rows) if row not in rows[:index]])
    assert found[1] == found[0]


@pytest.mark.parametrize("write_interval", ["batch", "epoch", "batch_and_epoch"])
def test_writers_are_given_what_lightnings_are(lightning: Any, tmp_path: Path, write_interval: str) -> None:
    """The same predictions and indices reach a writer in the same order."""
    found = []
    for package in (lightning, pl):
        seen: list[Any] = []

        class Writer(package.callbacks.BasePredictionWriter):  # type: ignore[misc, name-defined]
            def write_on_batch_end(self, trainer: Any, module: Any, prediction: Any, *rest: Any) -> None:
                seen.append(("batch", prediction.tolist(), list(rest[0]), rest[2:]))  # noqa: B023

            def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, indices: Any) -> None:
                seen.append(("epoch", [item.tolist() for item in predictions], indices))  # noqa: B023

        package.Trainer(
            callbacks=[Writer(write_interval)],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
        ).predict(module_of(package, False), loader(10))
        found.append(seen)
    assert found[1] == found[0] != []


def spikes(package: Any, kind: Callable[..., Any], losses: list[float], root: Path, **options: Any) -> str:
    """Return the end of the run and the file that it leaves."""

    class Told(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).mean() * 0 + losses[batch_idx]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data: Any = torch.ones(len(losses), 1)
    end = ""
    try:
        package.Trainer(
            callbacks=[kind(exclude_batches_path=root, **options)],
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=root,
        ).fit(Told(), DataLoader(data))
    except RuntimeError as error:
        end = type(error).__name__
    path = root / "skip_batches.json"
    return end + ("".join(path.read_text().split()) if path.exists() else "")


@pytest.mark.parametrize(
    "losses", [[1, 1, 5, 1], [1, 1, 2.9, 1], [1, 1, -9, 1], [1, 1, float("nan"), 1], [9, 1, 1, 1, 4]]
)
@pytest.mark.parametrize(
    "options", [{}, {"atol": 3.5}, {"rtol": None, "atol": 2.0}, {"mode": "max"}, {"window": 2, "warmup": 2}]
)
def test_spikes_are_lightnings(
    lightning: Any, tmp_path: Path, losses: list[float], options: dict[str, Any]
) -> None:
    """The same losses end training, and the same batches are written down."""
    from lightning.pytorch.callbacks.spike import SpikeDetection as Theirs

    ends = []
    for package, kind in ((lightning, Theirs), (pl, pl.callbacks.SpikeDetection)):
        root = tmp_path / package.__name__
        root.mkdir()
        ends.append(spikes(package, kind, losses, root, **options))
    assert ends[1] == ends[0]
