"""self.log on a group: exact over uneven ranks, one exchange at log points, and nobody waits for a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import orchestrator as pl
from orchestrator.metrics import Accuracy
from tests.orchestrator.groups import Net, group_trainer, loader, points
from tests.orchestrator.metric_kinds import MergeableMean
from tests.orchestrator.test_log import Memory, values

pytestmark = pytest.mark.ray

COLLECTIVES = (
    "all_gather",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "monitored_barrier",
    "reduce",
)


class Collectives(pl.Callback):
    """Notes which collectives there were, by rank, in the steps that end at each batch."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.by_batch: list[list[str]] = []
        self.at_epoch_end: list[str] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.originals = {name: getattr(torch.distributed, name) for name in COLLECTIVES}
        for name, original in self.originals.items():
            setattr(torch.distributed, name, self._noting(name, original))

    def _noting(self, name: str, original: Any) -> Any:
        def collective(*args: Any, **kwargs: Any) -> Any:
            self.made.append(name)
            return original(*args, **kwargs)

        return collective

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.by_batch.append(self.made.copy())
        self.made.clear()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.at_epoch_end = self.made.copy()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for name, original in self.originals.items():
            setattr(torch.distributed, name, original)
        del self.originals


class Five(Net):
    """Logs five numbers and two metric objects, synchronised, for step and epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = Accuracy()
        self.mean = MergeableMean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        for index in range(5):
            self.log(f"x{index}", loss, on_step=True, on_epoch=True, sync_dist=True, prog_bar=True)
        self.accuracy(self(batch[0]), batch[1])
        self.mean.update(float(batch_idx))
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("mean", self.mean, on_step=True, on_epoch=True)
        return loss


def test_there_is_one_exchange_at_a_log_point_and_none_in_a_step(tmp_path: Path) -> None:
    """Seven metrics together cost one exchange at a log point and one when the epoch is reduced; a step
    costs none.
    """
    counts = Collectives()
    trainer = group_trainer(tmp_path, max_epochs=1, log_every_n_steps=3, callbacks=[counts], max_failures=0)
    trainer.fit(Five(), loader(128))
    assert [len(made) for made in counts.by_batch[1:]] == [0, 0, 1, 0, 0, 1, 0]  # seen one batch later
    assert {name for made in counts.by_batch for name in made} == {"all_gather_object"}
    assert counts.at_epoch_end == ["all_gather_object"]
    assert len(trainer.callback_metrics) == 21


def test_a_run_that_survives_losses_exchanges_once_more_at_a_log_point(tmp_path: Path) -> None:
    """Where ranks meet anyway they tell each other what only they know; a step still makes no collective."""
    counts = Collectives()
    trainer = group_trainer(tmp_path, max_epochs=1, log_every_n_steps=3, callbacks=[counts])
    trainer.fit(Five(), loader(128))
    assert [len(made) for made in counts.by_batch[1:]] == [0, 0, 2, 0, 0, 2, 0]  # seen one batch later
    assert {name for made in counts.by_batch for name in made} == {"all_gather_object"}


class Uneven(Net):
    """Rank 0 logs 0 for one sample, rank 1 logs 3 for two; each rank logs names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.both = MergeableMean()
        self.second = MergeableMean()

    def on_train_start(self) -> None:
        self.first = torch.distributed.new_group([0])

    def on_train_end(self) -> None:
        del self.first

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rank, weight = self.global_rank, 1 + self.global_rank
        value = torch.tensor(3.0 * rank)
        self.log("mean", value, on_step=True, on_epoch=True, sync_dist=True, batch_size=weight)
        for reduce_fx in ("sum", "min", "max"):
            self.log(reduce_fx, value, on_step=False, on_epoch=True, sync_dist=True, reduce_fx=reduce_fx)
        self.log("own", value, on_step=False, on_epoch=True)
        self.log("first", value, on_step=False, on_epoch=True, sync_dist=True, sync_dist_group=self.first)
        self.log(f"of_rank_{rank}", 1.0 + rank, on_step=True, on_epoch=True, sync_dist=bool(batch_idx + 1))
        self.both.update(*[3.0 * rank] * weight)
        if rank == 0:
            self.log("zero", 4.0, on_epoch=True, rank_zero_only=True)
            self.log("both", self.both, on_step=False, on_epoch=True)
        else:
            self.second.update(5.0)
            self.log("second", self.second, on_step=False, on_epoch=True)
            assert self.trainer.log_dir is not None
            assert self.trainer.callback_metrics["mean"] == 3.0
        return self.loss(batch)


def test_uneven_ranks_are_exact_and_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Means over ranks weigh samples, at log points too; a name or an object that one rank logs reaches all;
    what one rank reads alone holds up nobody.
    """

    class Gathers(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.log("callbacks", 1.0 + trainer.global_rank, sync_dist=True, reduce_fx="max")

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.seen = trainer.strategy.gather(values(trainer.callback_metrics))

    memory, gathers = Memory(), Gathers()
    trainer = group_trainer(tmp_path, max_epochs=1, log_every_n_steps=1, callbacks=[gathers], logger=memory)
    trainer.fit(Uneven(), loader(32))
    expected = {
        "mean": 2.0,
        "mean_step": 2.0,
        "mean_epoch": 2.0,
        "sum": 6.0,
        "min": 0.0,
        "max": 3.0,
        "own": 0.0,
        "first": 0.0,
        "both": 2.0,
        "second": 5.0,
        "callbacks": 2.0,
        **{f"zero{fork}": 4.0 for fork in ("", "_step", "_epoch")},
        **{f"of_rank_0{fork}": 1.0 for fork in ("", "_step", "_epoch")},
        **{f"of_rank_1{fork}": 2.0 for fork in ("", "_step", "_epoch")},
    }
    assert values(trainer.callback_metrics) == expected
    assert gathers.seen == [expected, expected]
    assert "_log_sink" not in vars(gathers)
    assert memory.of("mean_step") == [(0, 2.0), (1, 2.0)]
    assert memory.of("of_rank_1_step") == [(0, 2.0), (1, 2.0)]


class Evaluated(Net):
    """Counts right answers in validation; one rank has more batches than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = Accuracy()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.accuracy.update(self(batch[0]), batch[1])
        self.log("accuracy", self.accuracy)

    def on_validation_epoch_end(self) -> None:
        self.log("by_hand", self.accuracy.compute())


@pytest.mark.parametrize("length", [1, 29])
def test_accuracy_over_ranks_is_that_of_all_samples(tmp_path: Path, length: int) -> None:
    """Validation on two ranks finds the accuracy of all samples, also where a rank has none, and where the
    module computes it by itself.
    """
    module = Evaluated()
    (found,) = group_trainer(tmp_path).validate(module, loader(length, 4), verbose=False)
    inputs, labels = points(length)[:]
    expected = (module(inputs).argmax(dim=1) == labels).float().mean().item()
    assert found == pytest.approx({"accuracy": expected, "by_hand": expected})
    assert module.accuracy.total == 0


class SavesInTheMiddle(pl.Callback):
    """Writes a checkpoint after the third batch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 2:
            trainer.save_checkpoint(self.path)


def test_each_ranks_metric_objects_are_resumed(tmp_path: Path) -> None:
    """An epoch that goes on from a checkpoint of two ranks ends with the value of the whole epoch."""
    path = tmp_path / "middle.ckpt"
    whole = group_trainer(tmp_path, max_epochs=1, callbacks=[SavesInTheMiddle(path)])
    whole.fit(Five(), loader(96))
    resumed = group_trainer(tmp_path, max_epochs=1)
    resumed.fit(Five(), loader(96), ckpt_path=path)
    assert values(resumed.callback_metrics) == values(whole.callback_metrics)
