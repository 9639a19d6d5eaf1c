"""Training on a group computes what it must: DDP's own bits, and exact means over unequal data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import orchestrator as pl
from cluster import GroupSpec, WorkerContext, pool
from tests.orchestrator.groups import HALF_A_CPU, Net, group_trainer, loader, points

pytestmark = pytest.mark.ray


class Wide(Net):
    """A module whose gradients fill several of DDP's buckets."""

    def __init__(self) -> None:
        super().__init__(features=64, width=1)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 700), torch.nn.ReLU(), torch.nn.Linear(700, 700), torch.nn.Linear(700, 2)
        )
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def plain_ddp(context: WorkerContext, epochs: int, accumulate: int, clip: float | None) -> dict[str, Tensor]:
    """What a user of plain PyTorch writes."""
    module = Wide()
    model = DistributedDataParallel(module.net)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    data = points(96, features=64)
    sampler: DistributedSampler[Any] = DistributedSampler(data, shuffle=True, seed=0)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches = list(DataLoader(data, batch_size=4, sampler=sampler))
        for index, (inputs, labels) in enumerate(batches):
            last = (index + 1) % accumulate == 0
            model.require_backward_grad_sync = last
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            (loss / accumulate if accumulate > 1 else loss).backward()
            if last:
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return {name: item.clone() for name, item in module.state_dict().items()}


@pytest.mark.parametrize(
    ("ranks", "accumulate", "clip"),
    [(2, 1, None), (3, 2, 0.5), pytest.param(4, 1, None, marks=pytest.mark.slow)],
)
def test_ddp_is_bit_equal_to_plain_ddp(
    tmp_path: Path, ranks: int, accumulate: int, clip: float | None
) -> None:
    """Weights after two epochs equal those of a plain DistributedDataParallel loop to the bit."""
    module = Wide()
    trainer = group_trainer(
        tmp_path, ranks, accumulate_grad_batches=accumulate, gradient_clip_val=clip, strategy="ddp"
    )
    trainer.fit(module, DataLoader(points(96, features=64), batch_size=4, shuffle=True))
    spec = GroupSpec.create(ranks, resources_per_worker=HALF_A_CPU, start_timeout_s=60.0)
    with pool.lease(spec) as group:
        expected = group.run(plain_ddp, 2, accumulate, clip)
    for name, weights in module.state_dict().items():
        assert torch.equal(weights, expected[0][name]), name
        assert torch.equal(expected[0][name], expected[-1][name]), name


class Sgd(Net):
    """Plain SGD, in double precision, so that sums in another order agree closely."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        return self.loss((inputs.double(), labels))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.mark.parametrize(
    ("length", "ranks", "accumulate"),
    [
        (33, 2, 1),
        (50, 3, 2),
        pytest.param(37, 2, 1, marks=pytest.mark.slow),
        pytest.param(17, 4, 3, marks=pytest.mark.slow),
    ],
)
def test_uneven_ends_weigh_samples(tmp_path: Path, length: int, ranks: int, accumulate: int) -> None:
    """Every sample is used once, and a micro-batch is the mean over the samples that all ranks have."""
    batch_size = 4
    module = Sgd()
    trainer = group_trainer(tmp_path, ranks, max_epochs=1, accumulate_grad_batches=accumulate)
    trainer.fit(module, loader(length, batch_size))
    assert trainer.samples_seen == length

    reference = Sgd()
    optimizer = reference.configure_optimizers()
    data = points(length)
    shards = [list(range(rank, length, ranks)) for rank in range(ranks)]
    rows = [
        [index for shard in shards for index in shard[start : start + batch_size]]
        for start in range(0, len(shards[0]), batch_size)
    ]
    for begin in range(0, len(rows), accumulate):
        window = rows[begin : begin + accumulate]
        optimizer.zero_grad()
        for row in window:
            inputs, labels = data[row]
            (reference.loss((inputs.double(), labels)) / len(window)).backward()
        optimizer.step()
    for name, weights in module.state_dict().items():
        torch.testing.assert_close(weights, reference.state_dict()[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_with_an_empty_rank(tmp_path: Path, precision: str) -> None:
    """A rank without a last batch takes part in the scaled step, so all ranks keep equal weights."""
    module = Ranks()
    trainer = group_trainer(tmp_path, 2, max_epochs=2, precision=precision, callbacks=[CompareRanks()])
    trainer.fit(module, loader(17, 8))
    assert trainer.global_step == 4


class Ranks(Net):
    """Nothing of its own; a name for the test above."""


class CompareRanks(pl.Callback):
    """Fails where ranks end an epoch with unequal weights."""

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        flat = torch.cat([item.detach().reshape(-1) for item in pl_module.parameters()])
        first, *others = trainer.strategy.gather(flat)
        assert all(torch.equal(first, other) for other in others)


class Stream(torch.utils.data.IterableDataset[Any]):
    """An endless-looking stream whose length nobody can know."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Any:
        data = points(self.length)
        return (data[index] for index in range(self.length))


@pytest.mark.parametrize(("join", "steps"), [(False, 4), (True, 5)])
def test_streams_of_unknown_length_end_together(tmp_path: Path, join: bool, steps: int) -> None:
    """Ranks whose stream ends early neither hang nor are waited for."""
    module = Net()
    trainer = group_trainer(tmp_path, 2, max_epochs=1, join_uneven=join, callbacks=[CompareRanks()])
    trainer.fit(module, DataLoader(Stream(17), batch_size=2))
    assert trainer.global_step == steps


def test_metrics_are_exact_over_uneven_ranks(tmp_path: Path) -> None:
    """Epoch metrics with sync_dist equal the mean over all samples, and no sample counts twice."""
    module = Net()
    trainer = group_trainer(tmp_path, 3)
    (found,) = trainer.validate(module, loader(29, 4), verbose=False)
    inputs, labels = points(29)[:]
    expected = torch.nn.functional.cross_entropy(module(inputs), labels)
    assert found["val_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_resuming_three_ranks_keeps_their_buckets(tmp_path: Path) -> None:
    """From 3 ranks on DDP's buckets show in the bits: a resumed run reduces in those that the run had."""

    def run(ckpt_path: str | None = None) -> dict[str, Tensor]:
        torch.manual_seed(1)
        module = Wide()
        saver = pl.callbacks.ModelCheckpoint(
            tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        trainer = group_trainer(tmp_path, 3, max_epochs=1, callbacks=[saver], enable_checkpointing=True)
        trainer.fit(
            module, DataLoader(points(96, features=64), batch_size=4, shuffle=True), ckpt_path=ckpt_path
        )
        return module.state_dict()

    whole, resumed = run(), run(str(tmp_path / "step=5.ckpt"))
    for name, weights in whole.items():
        assert torch.equal(weights, resumed[name]), name


class WarmsUp(Net):
    """Sets the learning rate in optimizer_step, as warm-ups do."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 1.3
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


def test_a_rank_without_a_batch_steps_as_the_others(tmp_path: Path) -> None:
    """An overridden optimizer_step runs on every rank in every step, so ranks keep equal weights."""
    trainer = group_trainer(tmp_path, 2, max_epochs=3, callbacks=[CompareRanks()])
    trainer.fit(WarmsUp(), loader(9, 2))
    assert trainer.global_step == 9


class Splits(pl.LightningDataModule):
    """Splits its data at random in setup, as many do."""

    def setup(self, stage: str) -> None:
        self.parts = torch.utils.data.random_split(points(16), [10, 6])

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts[0], batch_size=5)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts[1], batch_size=3)


class CompareSplits(pl.Callback):
    """Fails where ranks have split the data differently, or draw the same numbers in training."""

    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        first, *others = trainer.strategy.gather(list(trainer.datamodule.parts[0].indices))
        assert all(other == first for other in others)
        draws = trainer.strategy.gather(torch.rand(1).item())
        assert len(set(draws)) == len(draws)


def test_random_set_up_is_alike_on_all_ranks_and_training_is_not(tmp_path: Path) -> None:
    """A random split in setup gives every rank the same parts; after that each rank draws its own numbers."""
    trainer = group_trainer(tmp_path, 2, max_epochs=1, callbacks=[CompareSplits()])
    trainer.fit(Net(), datamodule=Splits())
    assert trainer.global_step == 1


def test_a_rank_without_validation_data_knows_the_metrics(tmp_path: Path) -> None:
    """One validation sample on two ranks: both can monitor the metric."""
    saver = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss")
    trainer = group_trainer(tmp_path, 2, max_epochs=1, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(Net(), loader(16), loader(1))
    assert saver.best_model_path


class Stream8(torch.utils.data.IterableDataset[Any]):
    """The numbers 0 to 7."""

    def __iter__(self) -> Any:
        return iter(range(8))


class Echo(Net):
    """Predicts what it is given."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch


def test_predictions_of_a_stream_keep_its_order(tmp_path: Path) -> None:
    """Whole batches of a stream are dealt to ranks, so predictions come back in order."""
    found = group_trainer(tmp_path, 2).predict(Echo(), DataLoader(Stream8(), batch_size=2))
    assert torch.cat(found).tolist() == list(range(8))
