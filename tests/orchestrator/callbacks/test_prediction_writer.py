"""BasePredictionWriter: what is written, which samples it belongs to, and what predict returns then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import orchestrator as pl
from orchestrator.callbacks import BasePredictionWriter
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import quiet_trainer


class Echoes(pl.LightningModule):
    """Predicts its input."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch.tolist()


class Keeps(BasePredictionWriter):
    """Keeps what it is to write."""

    def __init__(self, write_interval: str) -> None:
        super().__init__(write_interval)
        self.batches: list[Any] = []
        self.epochs: list[Any] = []

    def write_on_batch_end(
        self, trainer: Any, pl_module: Any, prediction: Any, indices: Any, batch: Any, idx: int, loader: int
    ) -> None:
        self.batches.append((prediction, indices, idx, loader))

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, indices: Any) -> None:
        self.epochs.append((predictions, indices))


class Files(BasePredictionWriter):
    """Writes a file for each rank."""

    def __init__(self, root: Path) -> None:
        super().__init__("epoch")
        self.root = root

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, indices: Any) -> None:
        path = self.root / f"{trainer.global_rank}.json"
        path.write_text(json.dumps({"predictions": predictions, "indices": indices}))


def numbers(length: int, **options: Any) -> Any:
    """The numbers from 0, each sample its own index."""
    data: Any = torch.arange(length)
    return DataLoader(data, batch_size=2, **options)


def test_each_batch_is_written_with_its_samples() -> None:
    """After each batch its prediction and the places of its samples come; nothing is returned or kept."""
    writer = Keeps("batch")
    assert quiet_trainer(writer).predict(Echoes(), numbers(5)) is None
    assert writer.batches == [([0, 1], [0, 1], 0, 0), ([2, 3], [2, 3], 1, 0), ([4], [4], 2, 0)]
    assert writer.epochs == []


def test_everything_is_written_at_the_end() -> None:
    """At the end all predictions come by batch, by loader where there are several, with their samples."""
    writer = Keeps("epoch")
    quiet_trainer(writer).predict(Echoes(), numbers(3))
    quiet_trainer(writer).predict(Echoes(), [numbers(3), numbers(2)])
    first, second = writer.epochs
    assert first == ([[0, 1], [2]], [[[0, 1], [2]]])
    assert second == ([[[0, 1], [2]], [[0, 1]]], [[[0, 1], [2]], [[0, 1]]])
    assert writer.batches == []


def test_predictions_are_returned_on_request() -> None:
    """With a writer predict returns what it predicts only when told to."""
    writer = Keeps("batch_and_epoch")
    assert quiet_trainer(writer).predict(Echoes(), numbers(3), return_predictions=True) == [[0, 1], [2]]
    assert (len(writer.batches), len(writer.epochs)) == (2, 1)


@pytest.mark.parametrize("options", [{"shuffle": True}, {"shuffle": True, "num_workers": 1}])
def test_indices_follow_the_sampler(options: dict[str, Any]) -> None:
    """In a shuffled order, read ahead by a worker or not, each index is that of its sample."""
    writer = Keeps("batch")
    quiet_trainer(writer, limit_predict_batches=3).predict(Echoes(), numbers(9, **options))
    assert len(writer.batches) == 3
    assert all(prediction == indices for prediction, indices, *_ in writer.batches)


def test_a_stream_has_no_indices() -> None:
    """Where samples have no place, None and an empty list say so."""

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    writer = Keeps("batch_and_epoch")
    quiet_trainer(writer).predict(Echoes(), DataLoader(Stream(), batch_size=2))
    assert writer.batches == [([0, 1], None, 0, 0), ([2], None, 1, 0)]
    assert writer.epochs == [([[0, 1], [2]], [[]])]


def test_noting_draws_no_random_numbers() -> None:
    """The order of samples and the numbers that are drawn later are those of a run without a writer."""
    ends = []
    for writers in ([], [Keeps("batch")]):
        torch.manual_seed(5)
        found = quiet_trainer(*writers).predict(Echoes(), numbers(9, shuffle=True), return_predictions=True)
        ends.append((found, torch.rand(1).item()))
    assert ends[0] == ends[1]


def test_an_unknown_interval_is_refused() -> None:
    """The error names the nearest interval."""
    with pytest.raises(
        MisconfigurationError, match=r"Keeps\(write_interval='epochs'\).*Did you mean 'epoch'"
    ):
        Keeps("epochs")


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_each_rank_writes_its_own(tmp_path: Path) -> None:
    """On two ranks every sample is written once, by the rank that has it, under its own index."""
    trainer = group_trainer(tmp_path, callbacks=[Files(tmp_path)])
    assert trainer.predict(Echoes(), numbers(7)) is None
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [item["predictions"] for item in found] == [[[0, 1], [4, 5]], [[2, 3], [6]]]
    assert [item["indices"][0] for item in found] == [item["predictions"] for item in found]
