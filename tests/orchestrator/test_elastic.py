"""strategy="elastic" in one process: the arithmetic of V logical ranks, against a loop written out here."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import orchestrator as pl
from cluster.tree_reduce import tree_sum
from modules.order import StridedPlan, deal, epoch_order
from orchestrator.callbacks import Callback, ModelCheckpoint
from orchestrator.strategies import ElasticStrategy
from tests.orchestrator.tiny import (
    FEATURES,
    Tiny,
    Validated,
    assert_equal_weights,
    loader,
    loss_of,
    points,
    sgd,
)
from tests.orchestrator.tiny import quiet_trainer as trainer_with

SEED = 7


def elastic(logical_ranks: int, *callbacks: Callback, **arguments: Any) -> pl.Trainer:
    """A quiet Trainer in this process that hosts so many logical ranks."""
    return trainer_with(*callbacks, strategy=ElasticStrategy(logical_ranks=logical_ranks), **arguments)


def written_out(
    module: Tiny, *, ranks: int, length: int, batch_size: int, accumulate: int = 1, epochs: int = 1
) -> nn.Module:
    """Train as the documents say: each logical rank's micro-batches in order, then the tree, mean, one "
    "step."""
    data = points(length)
    plan = StridedPlan(length=length, world_size=ranks, batch_size=batch_size)
    parameters = list(module.parameters())
    optimizer = sgd(parameters)
    for epoch in range(epochs):
        order = epoch_order(length, seed=SEED, epoch=epoch, shuffle=True)
        ids = [deal(order, plan, rank).tolist() for rank in range(ranks)]
        for begin in range(0, plan.num_batches, accumulate):
            window = range(begin, min(begin + accumulate, plan.num_batches))
            vectors = []
            for rank in range(ranks):
                module.zero_grad()
                for index in window:
                    sizes = plan.sizes(index)
                    mine = ids[rank][index * batch_size : (index + 1) * batch_size]
                    if mine:
                        batch = [torch.stack(items) for items in zip(*(data[i] for i in mine), strict=True)]
                        loss = loss_of(module.net, batch) / len(window)
                        share = len(mine) * ranks / sum(sizes)
                        (loss if share == 1 else loss * share).backward()
                vectors.append(
                    torch.cat(
                        [
                            (torch.zeros_like(item) if item.grad is None else item.grad).reshape(-1)
                            for item in parameters
                        ]
                    )
                )
            mean = tree_sum(vectors) / ranks
            for item, part in zip(parameters, mean.split([item.numel() for item in parameters]), strict=True):
                item.grad = part.view_as(item)
            optimizer.step()
    return module


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Any:
    """As the strategy computes with one thread, so does the loop written out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pl.seed_everything(SEED, verbose=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("ranks", "length", "accumulate"), [(4, 32, 1), (3, 30, 2), (6, 50, 1), (5, 47, 3)], ids=str
)
def test_it_computes_what_the_documents_say(ranks: int, length: int, accumulate: int) -> None:
    """Sampling, weights at an uneven end, accumulation and the order of the sum are those of a plain loop."""
    module = Tiny()
    expected = written_out(
        copy.deepcopy(module), ranks=ranks, length=length, batch_size=4, accumulate=accumulate, epochs=2
    )
    elastic(ranks, max_epochs=2, accumulate_grad_batches=accumulate).fit(module, loader(length, shuffle=True))
    assert_equal_weights(module, expected)


class Watched(Tiny):
    """Notes which logical rank runs where, and what it draws."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[tuple[int, int], float] = {}
        self.stood: list[tuple[str, int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        rank, step = self.trainer.global_rank, self.trainer.global_step
        self.stood.append(("step", rank, self.trainer.world_size))
        self.drawn[step, rank] = float(torch.rand(())) + random.random()
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.stood.append(("end", self.trainer.global_rank, self.trainer.world_size))


def test_what_runs_as_a_logical_rank_and_what_as_the_process() -> None:
    """training_step runs once for each logical rank, batch hooks once, as the first; the world has V "
    "ranks."""
    module = Watched()
    elastic(3).fit(module, loader(12))
    assert module.stood == [("step", 0, 3), ("step", 1, 3), ("step", 2, 3), ("end", 0, 3)]


def test_random_numbers_belong_to_seed_step_and_logical_rank() -> None:
    """Each logical rank draws other numbers at each step, the same in another run, others under another "
    "seed."""
    runs = []
    for seed in (1, 1, 2):
        pl.seed_everything(seed, verbose=False)
        module = Watched()
        torch.rand(seed + len(runs))  # where the process's own stream stands does not matter
        elastic(3).fit(module, loader(24))
        runs.append(module.drawn)
    assert len(set(runs[0].values())) == len(runs[0]) == 6
    assert runs[0] == runs[1] and set(runs[0].values()).isdisjoint(runs[2].values())


class Normed(Tiny):
    """Has batch statistics, and counts its forward passes in a buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += 1
        return nn.functional.mse_loss(self.net(self.norm(batch[0])), batch[1])


def test_buffers_are_logical_rank_0s() -> None:
    """Every logical rank begins with the same buffers, and afterwards there are those of the first."""
    module = Normed()
    elastic(4, accumulate_grad_batches=2).fit(module, loader(64))
    norm = nn.BatchNorm1d(FEATURES)
    rows = points(64).tensors[0]
    for begin in range(0, 16, 4):
        norm(rows[0::4][begin : begin + 4].contiguous())
    assert float(module.seen) == 4
    assert torch.equal(module.norm.running_mean, norm.running_mean)  # type: ignore[arg-type]
    assert torch.equal(module.norm.num_batches_tracked, norm.num_batches_tracked)  # type: ignore[arg-type]


class Logs(Validated):
    """Logs what can be told from the samples."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        value = batch[0].sum(1).mean()
        self.log("all", value, sync_dist=True, on_step=True, on_epoch=True)
        self.log("first", value, on_step=False, on_epoch=True)
        self.log("greatest", batch[0].max(), sync_dist=True, reduce_fx="max", on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("hooks", float(len(batch[0])), sync_dist=True, reduce_fx="sum", on_step=False, on_epoch=True)


def test_logged_values_are_reduced_over_logical_ranks() -> None:
    """With sync_dist a mean is over all samples, without it logical rank 0's alone; what a hook logs counts
    once, and validation sees each sample once.
    """
    module = Logs()
    trainer = elastic(4, log_every_n_steps=1)
    trainer.fit(module, loader(30), loader(22))
    rows = points(30).tensors[0]
    metrics = trainer.callback_metrics
    torch.testing.assert_close(metrics["all_epoch"], rows.sum(1).mean())
    torch.testing.assert_close(metrics["first"], rows[0::4].sum(1).mean())
    assert metrics["greatest"] == rows.max()
    assert metrics["hooks"] == 8
    with torch.no_grad():
        expected = loss_of(module.net, [tensor[0::4] for tensor in points(22).tensors])
    torch.testing.assert_close(metrics["val_loss"], expected)
    assert trainer.samples_seen == 30


class Count:
    """A metric object that adds up what it sees, and knows in which order."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._seen: list[Tensor] = []

    def update(self, values: Tensor) -> None:
        """Take a batch."""
        self._seen.append(values)

    def compute(self) -> float:
        """Return a number that depends on the order."""
        total = 0.0
        for item in self._seen:
            total = total * 0.5 + float(item.sum())
        return total

    @property
    def metric_state(self) -> dict[str, Any]:
        """All that was seen."""
        return {"seen": list(self._seen)}

    def merge_state(self, incoming_state: dict[str, Any]) -> None:
        """Add what another has seen."""
        self._seen += incoming_state["seen"]


class Counts(Tiny):
    """Uses a metric object."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.count.update(batch[0])
        self.log("count", self.count, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def test_metric_objects_are_merged_in_logical_order() -> None:
    """Each logical rank has a state of its own, and the value is that of all of them, one after the other."""
    trainer = elastic(3)
    trainer.fit(Counts(), loader(24, batch_size=2))
    rows, expected = points(24).tensors[0], Count()
    for rank in range(3):
        for begin in range(0, 8, 2):
            expected.update(rows[rank::3][begin : begin + 2])
    assert float(trainer.callback_metrics["count"]) == pytest.approx(expected.compute())


def test_sums_with_counts_are_divided_by_all_counts() -> None:
    """loss_sum and loss_count are added up over micro-batches and logical ranks."""

    class Summed(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[1], reduction="sum")
            return {"loss_sum": loss, "loss_count": len(batch[0])}

    module, whole = Summed(), Tiny()
    elastic(3, accumulate_grad_batches=2).fit(module, loader(22))
    optimizer = sgd(whole.parameters())
    loss_of(whole.net, points(22).tensors).backward()
    optimizer.step()
    for mine, other in zip(module.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("after", ["step", "epoch"])
def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path: Path, after: str) -> None:
    """Resuming in the middle of an epoch or between epochs is as if nothing had stopped."""
    every = {"every_n_train_steps": 3} if after == "step" else {"every_n_epochs": 1}
    keeps = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, **every)  # type: ignore[arg-type]
    whole = Noisy()
    elastic(3, keeps, enable_checkpointing=True, max_epochs=2, log_every_n_steps=1).fit(
        whole, loader(48, shuffle=True)
    )
    first = min(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
    again = Noisy()
    trainer = elastic(3, max_epochs=2, log_every_n_steps=1)
    trainer.fit(again, loader(48, shuffle=True), ckpt_path=first)
    assert_equal_weights(again, whole)
    with pytest.raises(pl.MisconfigurationError, match=r"logical ranks .* 3, and this one has 4"):
        elastic(4, max_epochs=2).fit(Noisy(), loader(48, shuffle=True), ckpt_path=first)


class Noisy(Tiny):
    """Has dropout, and logs."""

    def __init__(self) -> None:
        super().__init__(dropout=0.4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, sync_dist=True, on_step=True, on_epoch=True)
        return loss


class Stream(IterableDataset[Any]):
    """Samples without numbers."""

    def __iter__(self) -> Any:
        return iter(points(32))


class ByHand(Tiny):
    """Optimises by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Synchronised(Tiny):
    """Has a layer that meets other processes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.SyncBatchNorm(FEATURES)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    """An optimizer that runs the step itself."""
    return torch.optim.LBFGS(parameters)


@pytest.mark.parametrize(
    ("module", "data", "said"),
    [
        (ByHand, lambda: loader(32), "optimises by hand"),
        (lambda: Tiny(lbfgs), lambda: loader(32), "LBFGS runs the training step within its own step"),
        (Synchronised, lambda: loader(32), "Synchronised.norm is a SyncBatchNorm"),
        (Tiny, lambda: DataLoader(Stream(), batch_size=4), "does not say beforehand"),
        (Tiny, lambda: loader(3), "an epoch has 3 samples, dealt to 4 logical ranks"),
    ],
    ids=["by hand", "LBFGS", "SyncBatchNorm", "stream", "few samples"],
)
def test_what_cannot_be_is_refused_before_training(module: Any, data: Any, said: str) -> None:
    """What logical ranks cannot train is refused by name, before a step."""
    with pytest.raises(pl.MisconfigurationError, match=said):
        elastic(4).fit(module(), data())


@pytest.mark.parametrize(
    ("strategy", "arguments", "said"),
    [
        ({"logical_ranks": 0}, {}, r"ElasticStrategy\(logical_ranks=0\)"),
        ({"logical_ranks": 2}, {"devices": 3}, "3 workers: a worker hosts at least one"),
        ({"logical_ranks": 4, "min_workers": 5}, {}, "min_workers=5"),
        ({"min_workers": 3, "max_workers": 2}, {}, "leaves no number of workers"),
        ({"logical_ranks": 8, "min_workers": 3}, {"devices": 2}, "2 workers at the start"),
        ({"logical_ranks": 8, "max_workers": 2}, {"devices": 3}, "3 workers at the start"),
        ({"logical_ranks": 4}, {"sync_batchnorm": True}, "sync_batchnorm=True"),
        ({"logical_ranks": 4}, {"use_distributed_sampler": False}, "use_distributed_sampler=False"),
    ],
    ids=str,
)
def test_contradictions_are_refused(strategy: Any, arguments: dict[str, Any], said: str) -> None:
    """Arguments that leave no way to host the logical ranks are refused when the Trainer is made."""
    with pytest.raises(pl.MisconfigurationError, match=said):
        pl.Trainer(**{"accelerator": "cpu", "devices": 1, **arguments}, strategy=ElasticStrategy(**strategy))


def test_meeting_other_processes_is_refused() -> None:
    """all_gather would show how many processes there are, so it is refused by name."""

    class Gathers(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.all_gather(batch[0])
            return super().training_step(batch, batch_idx)

    with pytest.raises(pl.MisconfigurationError, match="all_gather under strategy='elastic'"):
        elastic(2).fit(Gathers(), loader(16))


class Augmented(Dataset[Any]):
    """Samples with noise, drawn where they are read."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return points(24)[index][0] + torch.randn(FEATURES), points(24)[index][1]


def shaken(samples: list[Any]) -> Any:
    """Collate with noise."""
    inputs = torch.stack([item[0] for item in samples])
    return inputs + torch.randn(inputs.shape), torch.stack([item[1] for item in samples])


def test_augmentation_does_not_depend_on_worker_processes() -> None:
    """Noise of samples and of collating is the same with worker processes and without."""
    found = []
    for workers in (0, 1):
        module = Noisy()
        data: DataLoader[Any] = DataLoader(
            Augmented(), batch_size=4, shuffle=True, collate_fn=shaken, num_workers=workers
        )
        elastic(2).fit(module, data)
        found.append(module)
    assert_equal_weights(*found)


def test_the_module_steps_its_optimizer_itself() -> None:
    """A module's own optimizer_step gets a closure that has run already, and changes nothing."""

    class Warms(Noisy):
        def optimizer_step(self, epoch: Any, batch_idx: Any, optimizer: Any, optimizer_closure: Any) -> None:
            assert optimizer_closure() is not None
            optimizer.step(closure=optimizer_closure)

    mine, plain = Warms(), Noisy()
    elastic(3, gradient_clip_val=0.1).fit(mine, loader(24))
    elastic(3, gradient_clip_val=0.1).fit(plain, loader(24))
    assert_equal_weights(mine, plain)
