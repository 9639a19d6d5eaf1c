"""The perceptrons: shapes, what they log, and that they learn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import orchestrator as pl
from modules.models import MLPClassifier, MLPRegressor, Spirals


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices on many threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer(epochs: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_a_classifier_learns_spirals() -> None:
    """In ten epochs nine of ten unseen points are told apart."""
    pl.seed_everything(0)
    model, run = MLPClassifier(2, 3, lr=3e-2), trainer(10)
    run.fit(model, datamodule=Spirals(batch_size=128))
    (metrics,) = run.test(model, datamodule=Spirals(), verbose=False)
    assert metrics["test_acc"] > 0.9
    assert metrics.keys() == {"test_loss", "test_acc"}


def test_predictions_are_one_for_each_row() -> None:
    """Classes are whole numbers, regression gives floats; both take features with or without a target."""
    features = torch.rand(5, 3)
    classes = MLPClassifier(3, 4, hidden=[8], dropout=0.5).eval().predict_step((features, None), 0)
    assert (classes.shape, classes.dtype) == ((5,), torch.int64)
    numbers = MLPRegressor(3, hidden=[]).predict_step(features, 0)
    assert (numbers.shape, numbers.dtype) == ((5,), torch.float32)


def test_regression_measures_squared_and_absolute_error() -> None:
    """With all weights zero the errors are those of predicting zero."""
    model = MLPRegressor(3, hidden=[])
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    found = model.measure((torch.rand(2, 3), torch.tensor([1.0, -3.0])))
    assert {name: value.item() for name, value in found.items()} == {"loss": 5.0, "mae": 2.0}


def test_features_of_another_width_are_refused() -> None:
    """The message has both widths."""
    with pytest.raises(ValueError, match=r"MLPClassifier\(in_features=2\) got 3 features a row"):
        MLPClassifier(2, 3)(torch.rand(4, 3))
