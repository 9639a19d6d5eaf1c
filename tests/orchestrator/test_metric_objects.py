"""self.log with metric objects: computed once an epoch, reset after it, found again after a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from orchestrator.metric_exchange import compute, shares
from orchestrator.metric_objects import MetricObjects
from orchestrator.metrics import Accuracy
from tests.orchestrator.metric_kinds import Mean, MergeableMean
from tests.orchestrator.test_log import Memory, values
from tests.orchestrator.tiny import Tiny, loader, loss_of, quiet_trainer


class Counts(Tiny):
    """Logs the share of positive targets, in batches of 4, 4 and 2 samples, and the mean index of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = Accuracy()
        self.val_accuracy = Accuracy()
        self.mean = MergeableMean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.accuracy(torch.ones(len(batch[1]), dtype=torch.long), (batch[1][:, 0] > 0).long())
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
        self.mean.update(float(batch_idx))
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        return loss_of(self.net, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_accuracy.update(torch.ones(len(batch[1]), dtype=torch.long), (batch[1][:, 0] > 0).long())
        self.log("val_accuracy", self.val_accuracy)


def shares_of_positives(length: int) -> tuple[float, list[float]]:
    """What `Counts` should find: over all samples, and in each batch."""
    batches = [(batch[1][:, 0] > 0).float() for batch in loader(length)]
    return torch.cat(batches).mean().item(), [batch.mean().item() for batch in batches]


def test_a_metric_object_gives_the_step_and_the_epoch() -> None:
    """Its forward value is that of the step; at the end of the epoch it is computed over all samples."""
    memory = Memory()
    trainer = quiet_trainer(logger=memory, log_every_n_steps=1)
    module = Counts()
    trainer.fit(module, loader(10), loader(10))
    whole, by_batch = shares_of_positives(10)
    assert memory.of("accuracy_step") == [(step, pytest.approx(value)) for step, value in enumerate(by_batch)]
    assert memory.of("accuracy_epoch") == [(2, pytest.approx(whole))]
    assert values(trainer.callback_metrics) == pytest.approx(
        {
            "accuracy": whole,
            "accuracy_step": by_batch[-1],
            "accuracy_epoch": whole,
            "mean": 1.0,
            "val_accuracy": whole,
        }
    )
    assert trainer.progress_bar_metrics.keys() == {"accuracy_step", "accuracy_epoch"}


def test_a_metric_object_is_reset_after_its_epoch() -> None:
    """Each epoch counts anew; hooks at its end still see what was counted, and afterwards nothing is left."""
    seen: list[tuple[int, int]] = []

    class Looks(Counts):
        def on_validation_epoch_end(self) -> None:
            seen.append((self.accuracy.total, self.val_accuracy.total))

        def on_train_epoch_end(self) -> None:
            seen.append((self.accuracy.total, self.val_accuracy.total))

    module = Looks()
    quiet_trainer(max_epochs=2).fit(module, loader(10), loader(6))
    assert seen == [(10, 6), (10, 0)] * 2
    assert (module.accuracy.total, module.val_accuracy.total, module.mean.count) == (0, 0, 0)


def test_the_sanity_check_leaves_nothing_in_a_metric_object() -> None:
    """What the sanity check has counted is gone before the first validation."""
    memory = Memory()
    trainer = quiet_trainer(num_sanity_val_steps=1, logger=memory)
    trainer.fit(Counts(), loader(10), loader(10))
    assert memory.of("val_accuracy") == [(2, pytest.approx(shares_of_positives(10)[0]))]


def test_a_metric_object_may_be_logged_at_the_end_of_the_epoch_only() -> None:
    """Updated in steps and logged in an epoch hook, it gives the epoch's value and is reset too."""

    class Late(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.mean = MergeableMean()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.mean.update(float(batch_idx))
            return loss_of(self.net, batch)

        def on_train_epoch_end(self) -> None:
            self.log("late", self.mean)

    memory, module = Memory(), Late()
    quiet_trainer(max_epochs=2, logger=memory).fit(module, loader(12))
    assert memory.of("late") == [(2, 1.0), (5, 1.0)]
    assert module.mean.count == 0


def test_anything_with_update_compute_and_reset_is_a_metric_object() -> None:
    """A plain object works in the same way; on steps it shows what it has computed so far."""

    class Plain(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.mean = Mean()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.mean.update(float(batch_idx))
            self.log("mean", self.mean, on_epoch=True)
            return loss_of(self.net, batch)

    memory = Memory()
    trainer = quiet_trainer(logger=memory, log_every_n_steps=2)
    trainer.fit(Plain(), loader(16))
    assert memory.of("mean_step") == [(1, 0.5), (3, 1.5)]
    assert values(trainer.callback_metrics) == {"mean": 1.5, "mean_step": 1.5, "mean_epoch": 1.5}


def test_a_callback_may_log_the_modules_metric_object() -> None:
    """A callback's log takes a metric object of the module like the module's."""

    class Logs(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            pl_module.own.update(float(batch_idx))
            self.log("own", pl_module.own, on_step=False, on_epoch=True)

    module = Tiny()
    module.own = MergeableMean()
    trainer = quiet_trainer(Logs())
    trainer.fit(module, loader(12))
    assert values(trainer.callback_metrics) == {"own": 1.0}


def test_a_metric_object_may_be_made_anew() -> None:
    """An object that takes the place of the one before it is logged in its place."""

    class Renews(Counts):
        def on_train_epoch_start(self) -> None:
            self.accuracy = Accuracy()

    memory = Memory()
    quiet_trainer(max_epochs=2, logger=memory).fit(Renews(), loader(10))
    whole = pytest.approx(shares_of_positives(10)[0])
    assert memory.of("accuracy_epoch") == [(2, whole), (5, whole)]


# ---------------------------------------------------------------- what is refused


def logging(log: Callable[[Any], None]) -> Tiny:
    """A module with metric objects that calls `log` with itself in each training step."""

    class Logs(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.mean = Mean()
            self.other = Mean()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.mean.update(1.0)
            log(self)
            return loss_of(self.net, batch)

    return Logs()


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (lambda module: module.log("x", Mean()), r"no attribute of .*self\.x = Mean\("),
        (
            lambda module: module.log("x", module.mean, metric_attribute="wrong"),
            "metric_attribute='wrong'.*there it is not. Write metric_attribute='mean'",
        ),
        (
            lambda module: module.log("x", Mean(), metric_attribute="mean"),
            "there it is not. Use one of 'mean', 'other'",
        ),
        (lambda module: module.log("x", {"a": 1.0}), r"self\.log_dict\(values\)"),
        (lambda module: module.log_dict({"a": {"b": 1.0}}), r"self\.log\('a', dict\).*log_dict"),
        (lambda module: module.log_dict({"a": "0.5"}), r"self\.log\('a', str\) cannot be recorded"),
        (lambda module: module.log("x", Mean), r"self\.log\('x', type\) cannot be recorded"),
    ],
)
def test_what_is_no_metric_of_the_module_is_refused(log: Callable[[Any], None], message: str) -> None:
    """Objects that are no attribute, wrong attributes, and containers are refused with what to write."""
    with pytest.raises(MisconfigurationError, match=message):
        quiet_trainer().fit(logging(log), loader(4))


@pytest.mark.parametrize(
    ("first", "second"),
    [("mean", "other"), ("mean", 1.0), ("mean", 1), (1.0, "mean"), ("mean", torch.tensor(1.0))],
)
def test_a_name_stays_with_its_object(first: Any, second: Any) -> None:
    """One name in one hook is one metric object, or numbers."""
    times = iter([first, second])

    def log(module: Any) -> None:
        value = next(times)
        module.log("x", getattr(module, value) if isinstance(value, str) else value)

    with pytest.raises(MisconfigurationError, match=r"self\.log\('x', \.\.\.\) in training_step was given"):
        quiet_trainer().fit(logging(log), loader(8))


def test_a_metric_object_computes_one_number() -> None:
    """An object that computes several is refused, with how to log them."""

    class Several(Mean):
        def compute(self) -> Any:
            return {"a": 1.0}

    def log(module: Any) -> None:
        module.several = module.__dict__.setdefault("several", Several())
        module.log("x", module.several, on_step=False, on_epoch=True)

    with pytest.raises(MisconfigurationError, match=r"computes a dict.*log_dict\(metric.compute"):
        quiet_trainer().fit(logging(log), loader(4))


# ---------------------------------------------------------------- over ranks, without any


def test_merging_is_exact_over_uneven_ranks() -> None:
    """Merged objects give the value of all samples; this rank's own state stays; empty ranks add nothing."""
    ranks = [MergeableMean() for _ in range(3)]
    ranks[0].update(1.0)
    ranks[2].update(4.0, 4.0)
    sent = [shares({"mean": mean})["mean"] for mean in ranks]
    assert [compute(mean, sent) for mean in ranks] == [3.0, 3.0, 3.0]
    assert [mean.count for mean in ranks] == [1, 0, 2]


def test_an_object_that_cannot_be_merged_is_refused_on_a_group() -> None:
    """Where several ranks count, an object without metric_state and merge_state is refused by name."""
    module = torch.nn.Module()
    module.mean = Mean()
    assert MetricObjects(module, world_size=1).attribute_of("x", module.mean, None) == "mean"
    with pytest.raises(MisconfigurationError, match=r"on 2 ranks: .*metric_state and merge_state"):
        MetricObjects(module, world_size=2).attribute_of("x", module.mean, None)


# ---------------------------------------------------------------- checkpoints


class Saves(pl.Callback):
    """Writes a checkpoint after a batch of the epoch, or when a validation in it has ended."""

    def __init__(self, path: Path, *, after: str) -> None:
        self.path = path
        self.after = after

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.after == "batch" and batch_idx == 1:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.after == "validation" and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("after", ["batch", "validation"])
def test_a_resumed_epoch_counts_what_was_counted_before(tmp_path: Path, after: str) -> None:
    """A checkpoint in the middle of an epoch keeps metric objects, so the epoch's value is the same; what a
    validation has counted stays out of it.
    """

    def run(**arguments: Any) -> dict[str, float]:
        trainer = quiet_trainer(*arguments.pop("callbacks", ()), val_check_interval=2)
        trainer.fit(Counts(), loader(20), loader(6), **arguments)
        return values(trainer.callback_metrics)

    path = tmp_path / "middle.ckpt"
    whole = run(callbacks=[Saves(path, after=after)])
    torch.load(path, weights_only=True)
    assert run(ckpt_path=path) == whole


def test_a_checkpoint_of_the_end_of_an_epoch_keeps_no_counts(tmp_path: Path) -> None:
    """What an epoch has counted is not written once it is over, however much it is."""
    keeps = ModelCheckpoint(tmp_path, filename="end", monitor="accuracy", save_on_train_epoch_end=True)
    quiet_trainer(keeps, enable_checkpointing=True).fit(Counts(), loader(8))
    content = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert [rank["metrics"] for rank in content["orchestrator"]["ranks"]] == [{}]


def test_rank_zero_only_cannot_be_monitored(tmp_path: Path) -> None:
    """A callback that watches a metric of rank 0 alone is refused, naming both."""

    class Logs(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("mine", 1.0, on_epoch=True, rank_zero_only=True)
            return loss_of(self.net, batch)

    for monitor in ("mine", "mine_epoch"):
        keeps = ModelCheckpoint(tmp_path, monitor=monitor)
        with pytest.raises(
            MisconfigurationError, match=rf"ModelCheckpoint\(monitor='{monitor}'\).*rank_zero_only"
        ):
            quiet_trainer(keeps, enable_checkpointing=True).fit(Logs(), loader(4))
    trainer = quiet_trainer()
    trainer.fit(Logs(), loader(4))
    assert values(trainer.callback_metrics) == {"mine": 1.0, "mine_step": 1.0, "mine_epoch": 1.0}
