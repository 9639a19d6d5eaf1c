"""Data of Hugging Face and of Ray Data are read as they are: each sample once, in process and on ranks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import orchestrator as pl
from modules.sharded_iterable import reads_rank, splits_workers
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import FEATURES, assert_equal_weights, network, quiet_trainer, sgd

pytestmark = pytest.mark.extras

ROWS = 22


def rows() -> list[dict[str, Any]]:
    """Rows with an id, and inputs made of it."""
    return [{"id": index, "x": [index / ROWS] * FEATURES} for index in range(ROWS)]


class Reads(pl.LightningModule):
    """Remembers the ids of each batch, over all ranks; with dropout, so that a resumed run shows its bits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(dropout=0.2)
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        gathered = self.trainer.strategy.gather(batch["id"].tolist())
        self.seen.append([item for part in gathered for item in part])
        return self.net(batch["x"].float()).square().mean()

    def configure_optimizers(self) -> Any:
        return sgd(self.parameters())


class Saves(pl.Callback):
    """Saves after the second step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def hugging_face(kind: str) -> Any:
    """A loader over a data set of Hugging Face's, of samples by number or a stream."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(rows()).with_format("torch")
    if kind == "stream":
        return DataLoader(data.to_iterable_dataset(num_shards=2), batch_size=3)
    return DataLoader(data, batch_size=3, shuffle=kind == "shuffled")


def flat(nested: list[list[int]]) -> list[int]:
    """All of them, sorted."""
    return sorted(item for part in nested for item in part)


@pytest.mark.parametrize("kind", ["in order", "shuffled", "stream"])
def test_hugging_face_in_process(kind: str, tmp_path: Path) -> None:
    """Each sample once an epoch, and from the middle of one a run goes on to the same bits."""

    def run(path: Path | None, *callbacks: Any) -> Reads:
        torch.manual_seed(1 if path is None else 2)
        module = Reads()
        quiet_trainer(*callbacks, max_epochs=2).fit(module, hugging_face(kind), ckpt_path=path)
        return module

    whole = run(None, Saves(tmp_path / "c.ckpt"))
    assert len(whole.seen) == 2 * 8
    assert flat(whole.seen[:8]) == flat(whole.seen[8:]) == list(range(ROWS))
    resumed = run(tmp_path / "c.ckpt")
    assert_equal_weights(resumed, whole)
    assert resumed.seen == whole.seen[2:]


def test_hugging_face_streams_are_dealt_to_ranks_unless_they_are_already() -> None:
    """One that `split_dataset_by_node` has divided is left alone; both divide among loader processes."""
    datasets = pytest.importorskip("datasets")
    from datasets.distributed import split_dataset_by_node

    stream = datasets.Dataset.from_list(rows()).to_iterable_dataset(num_shards=2)
    assert not reads_rank(stream) and splits_workers(stream, None)
    assert reads_rank(split_dataset_by_node(stream, rank=0, world_size=2))


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["shuffled", "stream"])
def test_hugging_face_on_a_group(kind: str, tmp_path: Path) -> None:
    """Two ranks share the samples of an epoch."""
    module = Reads()
    trainer = group_trainer(tmp_path, max_epochs=1, join_uneven=True)
    trainer.fit(module, hugging_face(kind))
    assert flat(module.seen) == list(range(ROWS))


class Batches:
    """What a user of Ray Data passes: an object whose iteration begins anew."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data.iter_torch_batches(batch_size=3))


@pytest.fixture
def ray_data() -> Iterator[Any]:
    """A data set of Ray Data's, on a Ray of this machine."""
    from cluster import pool, session

    pool.end()  # it needs CPUs
    ray_data = pytest.importorskip("ray.data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        session.connect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray Data's own
        yield ray_data.from_items(rows())
    session.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize("form", ["batches", "iterator", "wrapped"])
def test_ray_data_in_process(form: str, ray_data: Any) -> None:
    """`iter_torch_batches` of a data set, of its iterator, and an object that calls it: each row once an
    epoch.
    """
    loader = {
        "batches": lambda: ray_data.iter_torch_batches(batch_size=3),
        "iterator": lambda: ray_data.iterator().iter_torch_batches(batch_size=3),
        "wrapped": lambda: Batches(ray_data),
    }[form]()
    module = Reads()
    quiet_trainer(max_epochs=2).fit(module, loader)
    assert flat(module.seen) == sorted([*range(ROWS), *range(ROWS)])


@pytest.mark.ray
def test_ray_data_on_a_group(ray_data: Any, tmp_path: Path) -> None:
    """Each rank runs the data set, and takes its share of the batches."""
    module = Reads()
    trainer = group_trainer(tmp_path, max_epochs=1, join_uneven=True)
    trainer.fit(module, Batches(ray_data))
    assert flat(module.seen) == list(range(ROWS))
