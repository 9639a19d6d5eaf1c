"""Manual optimization and losses with counts on a group compute what one process computes on all the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orchestrator as pl
from tests.orchestrator.groups import Net, group_trainer, loader, points

pytestmark = pytest.mark.ray

RANKS = 2


class CompareRanks(pl.Callback):
    """Fails where ranks differ in weights or gradients, at the steps or at the end of an epoch."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._compare(trainer, [p.grad for g in optimizer.param_groups for p in g["params"]])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._compare(trainer, list(pl_module.parameters()))

    def _compare(self, trainer: Any, tensors: list[Any]) -> None:
        flat = torch.cat([item.detach().reshape(-1) for item in tensors])
        first, *others = trainer.strategy.gather(flat)
        assert all(torch.equal(first, other) for other in others)


class TwoSides(Net):
    """Trains two layers with an optimizer each, in double precision.

    Args:
        way: How the sides are kept apart and when they step.
    """

    def __init__(self, way: str = "toggle") -> None:
        super().__init__()
        self.automatic_optimization = False
        self.way = way
        self.double()

    def side_loss(self, batch: Any, which: int) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs.to(self.dtype)) * (1 + which), labels)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("seen", 1.0, reduce_fx="sum", on_step=False, on_epoch=True, sync_dist=True)
        optimizers = self.optimizers()
        if self.way == "together":  # one backward for both, clipped
            self.manual_backward(self.side_loss(batch, 0))
            for optimizer in optimizers:
                self.clip_gradients(optimizer, 0.05)
                optimizer.step()
                optimizer.zero_grad()
            return
        steps = self.way == "toggle" or batch_idx % 2 == 1
        for which, optimizer in enumerate(optimizers):
            with optimizer.toggle_model(sync_grad=self.way == "toggle"):
                self.manual_backward(self.side_loss(batch, which))
                if steps:
                    optimizer.step()
                    optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[index].parameters(), lr=0.3) for index in (0, 2)]


def rows(length: int, batch_size: int) -> list[list[int]]:
    """What both ranks have in each batch, together."""
    shards = [list(range(rank, length, RANKS)) for rank in range(RANKS)]
    return [
        [index for shard in shards for index in shard[start : start + batch_size]]
        for start in range(0, len(shards[0]), batch_size)
    ]


def expected(way: str, length: int, batch_size: int) -> TwoSides:
    """The module after one epoch in a plain loop over the batches of both ranks together."""
    module, data = TwoSides(way), points(length)
    optimizers = module.configure_optimizers()
    for number, row in enumerate(rows(length, batch_size)):
        batch = data[row]
        if way == "together":
            module.side_loss(batch, 0).backward()
            for optimizer in optimizers:
                nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.05)
                optimizer.step()
                optimizer.zero_grad()
            continue
        for which, optimizer in enumerate(optimizers):
            parameters = optimizer.param_groups[0]["params"]
            gradients = torch.autograd.grad(module.side_loss(batch, which), parameters)
            for item, gradient in zip(parameters, gradients, strict=True):
                item.grad = gradient if item.grad is None else item.grad + gradient
            if way == "toggle" or number % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
    return module


@pytest.mark.parametrize(("way", "length"), [("toggle", 33), ("accumulate", 37), ("together", 38)])
def test_every_step_takes_the_mean_over_ranks_once(tmp_path: Path, way: str, length: int) -> None:
    """Toggled, accumulated without reducing, or clipped: gradients at each step are those of all ranks'
    samples, also where a rank has fewer samples or none at the end."""
    module = TwoSides(way)
    trainer = group_trainer(tmp_path, max_epochs=1, callbacks=[CompareRanks()])
    trainer.fit(module, loader(length, 4))
    assert trainer.samples_seen == length
    batches = len(rows(length, 4))
    assert trainer.global_step == 2 * (batches // 2 if way == "accumulate" else batches)
    assert trainer.callback_metrics["seen"] == trainer.batches_seen
    reference = expected(way, length, 4)
    for name, weights in module.state_dict().items():
        torch.testing.assert_close(weights, reference.state_dict()[name], rtol=1e-9, atol=1e-12)


class Stream(torch.utils.data.IterableDataset[Any]):
    """Points in single precision whose number nobody can know."""

    def __iter__(self) -> Any:
        data = points(17)
        return (data[index] for index in range(17))


@pytest.mark.parametrize("precision", ["32", "16-mixed"])
def test_streams_go_on_to_the_last_ranks_end(tmp_path: Path, precision: str) -> None:
    """Where only the data tell that they have ended, a rank without a batch keeps step, scaled or not."""
    module = TwoSides().float()
    trainer = group_trainer(
        tmp_path, max_epochs=2, join_uneven=True, precision=precision, callbacks=[CompareRanks()]
    )
    trainer.fit(module, torch.utils.data.DataLoader(Stream(), batch_size=2))
    assert trainer.global_step == 2 * 2 * 5
    assert trainer.batches_seen == 2 * 9


def test_a_rank_without_any_batch_keeps_step(tmp_path: Path) -> None:
    """One sample on two ranks: the other rank runs it with weight 0 from the first step on."""
    module = TwoSides()
    group_trainer(tmp_path, max_epochs=1, precision="16-mixed", callbacks=[CompareRanks()]).fit(
        module, loader(1, 1)
    )
    assert not torch.equal(module.net[0].weight, TwoSides().net[0].weight)


class Saves(pl.Callback):
    """Saves after each batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.save_checkpoint(self.folder / f"{batch_idx}.ckpt")


class Normalized(TwoSides):
    """Has buffers that differ between ranks, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__("accumulate")
        self.norm, self.drop = nn.BatchNorm1d(8).double(), nn.Dropout(0.2)
        self.register_buffer("mask", torch.ones(2, 3, dtype=torch.bool).T)

    def side_loss(self, batch: Any, which: int) -> Tensor:
        inputs, labels = batch
        return super().side_loss((self.drop(self.norm(inputs.double())), labels), which)


def test_going_on_keeps_what_each_rank_has_accumulated(tmp_path: Path) -> None:
    """A resume between a backward that was not reduced and its step equals the run that went on."""

    def run(*callbacks: pl.Callback, ckpt_path: Path | None = None) -> dict[str, Tensor]:
        torch.manual_seed(3)
        module = Normalized()
        trainer = group_trainer(tmp_path, max_epochs=1, callbacks=list(callbacks))
        trainer.fit(module, loader(32, 4), ckpt_path=ckpt_path)
        return module.state_dict()

    whole = run(Saves(tmp_path))
    resumed = run(ckpt_path=tmp_path / "2.ckpt")
    assert [name for name, item in whole.items() if not torch.equal(item, resumed[name])] == []


class Tokens(Net):
    """Returns sums and counts of unequal numbers of tokens, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def sums(self, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, labels = batch
        inputs = inputs.double()
        tokens = (inputs[:, 0].abs() * 10).long()  # none for some samples
        losses = nn.functional.cross_entropy(self(inputs), labels, reduction="none")
        return (losses * tokens).sum(), tokens.sum()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        total, count = self.sums(batch)
        return {"loss_sum": total, "loss_count": count}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.mark.parametrize(("length", "accumulate"), [(32, 2), (37, 1), (33, 3), (1, 1)])
def test_counts_weigh_over_ranks_and_micro_batches(tmp_path: Path, length: int, accumulate: int) -> None:
    """A step's gradient is the sum of all ranks' sums over the sum of their counts, at uneven ends too."""
    module = Tokens()
    trainer = group_trainer(
        tmp_path,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=0.5,
        callbacks=[CompareRanks()],
    )
    trainer.fit(module, loader(length, 4))

    reference, data = Tokens(), points(length)
    optimizer = reference.configure_optimizers()
    found = rows(length, 4)
    for begin in range(0, len(found), accumulate):
        window = [index for row in found[begin : begin + accumulate] for index in row]
        total, count = reference.sums(data[window])
        (total / count).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for name, weights in module.state_dict().items():
        torch.testing.assert_close(weights, reference.state_dict()[name], rtol=1e-9, atol=1e-12)


class CountsCollectives(pl.Callback):
    """Counts the all-reduces of training that are not DDP's own, and fails where they are not as expected.

    Args:
        expected: How many.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.original, self.count = torch.distributed.all_reduce, 0

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return self.original(*args, **kwargs)

        torch.distributed.all_reduce = counting

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.distributed.all_reduce = self.original
        assert self.count == self.expected
        del self.original


class Means(Tokens):
    """Returns means instead."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        return outputs["loss_sum"] / outputs["loss_count"]


@pytest.mark.parametrize(("kind", "expected"), [(Tokens, 3), (Means, 0)])
def test_counts_cost_one_reduction_a_step(tmp_path: Path, kind: type[Net], expected: int) -> None:
    """The sum of counts is one all-reduce at the end of a window; without counts there is none."""
    trainer = group_trainer(
        tmp_path, max_epochs=1, accumulate_grad_batches=2, callbacks=[CountsCollectives(expected)]
    )
    trainer.fit(kind(), loader(48, 4))
    assert trainer.global_step == 3
