"""When loaders are asked for, how much of them is run, and when validation reads its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

import orchestrator as pl
from orchestrator import MisconfigurationError, validation_schedule
from orchestrator.validation_schedule import ValidationClock
from tests.orchestrator.test_loaders import Looks, numbers
from tests.orchestrator.tiny import Tiny, Validated, assert_equal_weights, loader, points, quiet_trainer

# -------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 5), (1, 1), (1.0, 5), (2.0, 2), (0.5, 2), (0, 0), (0.0, 0), (99, 5)]
)
def test_a_limit_is_a_number_or_a_share(limit: Any, expected: int) -> None:
    """An int counts batches, a float is a share, so 1 and 1.0 differ; for each kind of data."""
    module = Looks()
    trainer = quiet_trainer(
        limit_train_batches=limit,
        limit_val_batches=limit,
        limit_test_batches=limit,
        limit_predict_batches=limit,
        num_sanity_val_steps=3,
    )
    trainer.fit(module, numbers(10), numbers(10))
    found = [expected] if expected else []
    assert trainer.global_step == trainer.num_training_batches == expected
    assert trainer.num_val_batches == found
    assert trainer.num_sanity_val_batches == [min(3, item) for item in found]
    assert len(module.batches("val")) == (min(3, expected) + expected if expected else 0)
    trainer.test(module, numbers(10), verbose=False)
    assert trainer.num_test_batches == found
    assert len(trainer.predict(module, numbers(10)) or []) == expected
    assert trainer.num_predict_batches == found


def test_a_limit_of_nothing_asks_for_nothing() -> None:
    """With a limit of 0 no loader is asked for: fit without training batches returns quietly."""

    class Never(Looks):
        def train_dataloader(self) -> Any:
            raise AssertionError("asked")

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    trainer = quiet_trainer(
        limit_train_batches=0, limit_val_batches=0, limit_test_batches=0, limit_predict_batches=0
    )
    trainer.fit(Never())
    assert (trainer.global_step, trainer.current_epoch) == (0, 0)
    assert trainer.test(Never(), verbose=False) == trainer.validate(Never(), verbose=False) == []
    trainer.predict(Never())


def test_all_validation_batches_may_be_tried() -> None:
    """num_sanity_val_steps=-1 runs all of every loader before training, within the limit."""
    module = Looks()
    trainer = quiet_trainer(num_sanity_val_steps=-1, limit_val_batches=3, limit_train_batches=0)
    trainer.fit(module, numbers(2), [numbers(10), numbers(4)])
    assert [item[1:3] for item in module.seen] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert trainer.num_sanity_val_batches == [3, 2]


# -------------------------------------------------------------------- overfit_batches


@pytest.mark.parametrize(("batches", "train", "val"), [(2, 2, 2), (0.5, 2, 3), (1.0, 5, 6), (1, 1, 1)])
def test_overfitting_repeats_the_first_batches(batches: Any, train: int, val: int) -> None:
    """Both limits are set, shuffling is off with a warning for each, and validation reads its own data."""
    module = Looks()
    trainer = quiet_trainer(overfit_batches=batches, max_epochs=2)
    with pytest.warns(UserWarning, match="order comes from RandomSampler: its samples are read in the order"):
        trainer.fit(module, numbers(10, shuffle=True), DataLoader(range(100, 112), 2, shuffle=True))  # type: ignore[arg-type]
    assert module.batches("train") == [[2 * i, 2 * i + 1] for i in range(train)] * 2
    assert module.batches("val") == [[100 + 2 * i, 101 + 2 * i] for i in range(val)] * 2


def test_overfitting_leaves_what_has_no_order() -> None:
    """Loaders in order and other iterables stay; batches that a sampler composes stay with a warning."""
    module = Looks()
    quiet_trainer(overfit_batches=1).fit(module, numbers(4), [torch.arange(3), torch.arange(4)])
    assert (module.batches("train"), module.batches("val")) == ([[0, 1]], [[0, 1, 2]])

    class Own(BatchSampler):
        pass

    own = Own(RandomSampler(range(4)), 2, False)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="Own: it composes the batches"):
        quiet_trainer(overfit_batches=1).fit(Looks(), DataLoader(range(4), batch_sampler=own))  # type: ignore[arg-type]


def test_a_share_to_overfit_that_is_no_batch_is_refused() -> None:
    """The error names overfit_batches, and the least share that works."""
    with pytest.raises(MisconfigurationError, match=r"overfit_batches=0\.1\) gives 0 of 5 batches.*0\.2"):
        quiet_trainer(overfit_batches=0.1).fit(Looks(), numbers(10))


# -------------------------------------------------------------------- reloading


class Reloads(Looks):
    """Writes down the epochs in which it is asked for loaders; the data differ with each."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def train_dataloader(self) -> Any:
        self.asked.append(("train", self.trainer.current_epoch))
        return numbers(2 + 2 * self.trainer.current_epoch, shuffle=True)

    def val_dataloader(self) -> Any:
        self.asked.append(("val", self.trainer.current_epoch))
        return [torch.tensor([self.trainer.current_epoch])]


def test_loaders_are_reloaded_every_n_epochs() -> None:
    """Before every n-th epoch training and validation data are asked for anew, and used."""
    module = Reloads()
    trainer = quiet_trainer(max_epochs=4, reload_dataloaders_every_n_epochs=2)
    trainer.fit(module)
    assert sorted(module.asked) == [("train", 0), ("train", 2), ("val", 0), ("val", 2)]
    assert list(map(len, module.batches("train"))) == [2] * (1 + 1 + 3 + 3)
    assert module.batches("val") == [[0], [0], [2], [2]]
    assert trainer.num_training_batches == 3


def test_without_reloading_loaders_are_asked_for_once() -> None:
    """Sanity check, estimate and training share the loaders that were loaded first."""
    module = Reloads()
    trainer = quiet_trainer(max_epochs=3, num_sanity_val_steps=2)
    trainer.fit(module)
    assert trainer.estimated_stepping_batches == 3
    assert sorted(module.asked) == [("train", 0), ("val", 0)]


STEPS = [1, 1, 3, 3, 5]
"""Training batches of the epochs of `Reloads` under ``reload_dataloaders_every_n_epochs=2``."""


class Draws(Tiny):
    """Its loader's data depend on the random state in which it is asked."""

    def train_dataloader(self) -> Any:
        kept = torch.randperm(16)[:8].tolist()
        return DataLoader(torch.utils.data.Subset(points(16), kept), batch_size=4, shuffle=True)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_run_reloads_when_the_whole_one_does(tmp_path: Path, epoch: int) -> None:
    """From the end of any epoch on the hooks are asked as in the whole run, first for what it has in use."""

    class Saves(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == epoch - 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

        watches_metrics = True

    whole = Reloads()
    quiet_trainer(Saves(), max_epochs=5, reload_dataloaders_every_n_epochs=2).fit(whole)
    rest = Reloads()
    quiet_trainer(max_epochs=5, reload_dataloaders_every_n_epochs=2).fit(rest, ckpt_path=tmp_path / "a.ckpt")
    in_use = epoch - epoch % 2
    assert sorted(rest.asked) == sorted(item for item in whole.asked if item[1] >= in_use)
    assert list(map(len, rest.batches("train"))) == list(
        map(len, whole.batches("train")[sum(STEPS[:epoch]) :])
    )
    assert rest.batches("val") == whole.batches("val")[epoch:]


def test_a_run_resumed_within_an_epoch_has_the_data_of_that_epoch(tmp_path: Path) -> None:
    """In an epoch that goes on with data of an earlier one, that is what a resumed run gets."""

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if (trainer.current_epoch, index) == (3, 1):
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    pl.seed_everything(4, verbose=False)
    whole, rest = Reloads(), Reloads()
    quiet_trainer(Saves(), max_epochs=5, reload_dataloaders_every_n_epochs=2).fit(whole)
    quiet_trainer(max_epochs=5, reload_dataloaders_every_n_epochs=2).fit(rest, ckpt_path=tmp_path / "a.ckpt")
    assert rest.asked[0] == ("train", 2)
    assert rest.seen == whole.seen[-len(rest.seen) :]
    assert len(rest.batches("train")) == 1 + STEPS[4]


def test_a_resumed_run_reloads_the_same_data(tmp_path: Path) -> None:
    """Data that depend on the random state are those of the uninterrupted run, and so are the weights."""

    class Saves(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

        watches_metrics = True

    pl.seed_everything(1, verbose=False)
    whole = Draws(dropout=0.2)
    quiet_trainer(Saves(), max_epochs=4, reload_dataloaders_every_n_epochs=1).fit(whole)
    for epoch in range(3):
        torch.manual_seed(99)
        module = Draws(dropout=0.2)
        trainer = quiet_trainer(max_epochs=4, reload_dataloaders_every_n_epochs=1)
        trainer.fit(module, ckpt_path=tmp_path / f"{epoch}.ckpt")
        assert_equal_weights(module, whole)


# -------------------------------------------------------------------- the estimate


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_epochs": 3}, 15),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 9),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 4),
        ({"max_epochs": 2, "overfit_batches": 3}, 6),
    ],
)
def test_a_scheduler_can_be_built_from_the_estimate(arguments: dict[str, Any], expected: int) -> None:
    """In configure_optimizers the estimate is the number of steps that are then made, and loads once."""
    asked = []

    class Cycle(Tiny):
        def train_dataloader(self) -> Any:
            asked.append(1)
            return loader(20)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            steps = self.trainer.estimated_stepping_batches
            assert self.trainer.estimated_stepping_batches == steps == expected
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=int(steps))
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
            }

    trainer = quiet_trainer(**arguments)
    trainer.fit(Cycle())
    assert trainer.global_step == expected
    assert asked == [1]


def test_an_estimate_of_unknown_data_is_infinite() -> None:
    """Without lengths and limits there is no number; steps alone need no data."""
    found: list[Any] = []

    class Early(Looks):
        def configure_optimizers(self) -> Any:
            found.append((self.trainer.estimated_stepping_batches, self.trainer.num_training_batches))
            return super().configure_optimizers()

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(range(4))

    quiet_trainer().fit(Early(), DataLoader(Stream()))
    quiet_trainer(max_steps=2, max_epochs=-1).fit(Early(), DataLoader(Stream()))
    quiet_trainer(limit_train_batches=0).fit(Early(), DataLoader(Stream()))
    assert found == [(float("inf"), float("inf")), (2, 0), (0, 0)]


def test_an_early_estimate_resumes_exactly(tmp_path: Path) -> None:
    """A run that loads its data for the estimate goes on in the middle of an epoch like any other."""

    class Early(Tiny):
        def configure_optimizers(self) -> Any:
            assert self.trainer.estimated_stepping_batches == 10
            return super().configure_optimizers()

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 7:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    pl.seed_everything(1, verbose=False)
    whole, rest = Early(dropout=0.2), Early(dropout=0.2)
    quiet_trainer(Saves(), max_epochs=2).fit(whole, loader(20, shuffle=True))
    quiet_trainer(max_epochs=2).fit(rest, loader(20, shuffle=True), ckpt_path=tmp_path / "a.ckpt")
    assert_equal_weights(whole, rest)


# -------------------------------------------------------------------- validation by the time


class Clock:
    """A clock that the module moves on by one second a training batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(validation_schedule, "time", SimpleNamespace(monotonic=lambda: self.now))


class Ticks(Looks):
    """Moves a clock on."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.now += 1.0
        return super().training_step(batch, batch_idx)

    def order(self) -> str:
        """Training and validation batches as letters."""
        return "".join(item[0][0] for item in self.seen)


@pytest.mark.parametrize(
    ("every", "expected"), [(1, "ttttvttttvttttv"), (2, "ttttvttttttvtt"), (None, "ttttvttttvttttv")]
)
def test_validation_goes_by_the_time(
    monkeypatch: pytest.MonkeyPatch, every: int | None, expected: str
) -> None:
    """It follows the batch in which the time since the last one is over, in epochs with validation only."""
    module = Ticks(Clock(monkeypatch))
    trainer = quiet_trainer(max_epochs=4, val_check_interval={"seconds": 4}, check_val_every_n_epoch=every)
    trainer.fit(module, numbers(6), numbers(2))
    assert module.order() == expected
    assert trainer.val_check_interval == timedelta(seconds=4)


def test_a_clock_of_several_ranks_waits_for_their_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone the clock decides at once; with others what was agreed holds for one batch."""
    clock = Clock(monkeypatch)
    alone = ValidationClock(timedelta(seconds=2), alone=True)
    several = ValidationClock(timedelta(seconds=2), alone=False)
    clock.now = 2.0
    assert alone.is_due()
    assert several.is_up()
    assert not several.is_due()
    several.agreed = True
    assert [several.is_due(), several.is_due()] == [True, False]
    alone.restart()
    assert not alone.is_due()


def test_an_interval_beyond_the_epoch_counts_over_epochs() -> None:
    """With check_val_every_n_epoch=None validation comes after every n batches of training."""
    module = Looks()
    trainer = quiet_trainer(max_epochs=3, val_check_interval=4, check_val_every_n_epoch=None)
    trainer.fit(module, numbers(6), numbers(2))
    assert "".join(item[0][0] for item in module.seen) == "ttttvttttvt"
    with pytest.raises(MisconfigurationError, match="a number of batches or a length of time"):
        quiet_trainer(check_val_every_n_epoch=None)


def test_validation_is_made_up_for_after_a_resume(tmp_path: Path) -> None:
    """A run that was saved after a batch with validation due validates first when it goes on."""

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    data = {"a": loader(16), "b": loader(8)}

    class Both(Validated):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"], 0)

    seen: list[str] = []

    class Order(pl.Callback):
        def on_validation_start(self, trainer: Any, module: Any) -> None:
            seen.append("v")

        def on_train_batch_start(self, *args: Any) -> None:
            seen.append("t")

    quiet_trainer(Saves(), val_check_interval=2).fit(Both(), data, loader(4))
    quiet_trainer(Order(), val_check_interval=2).fit(Both(), data, loader(4), ckpt_path=tmp_path / "a.ckpt")
    assert "".join(seen) == "vttv"


@pytest.mark.extras
@pytest.mark.parametrize(
    "arguments",
    [
        {"overfit_batches": 2},
        {"overfit_batches": 0.5},
        {"val_check_interval": 0.4},
        {"val_check_interval": 2},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
        {"num_sanity_val_steps": -1},
        {"reload_dataloaders_every_n_epochs": 1},
        {"limit_val_batches": 1, "limit_train_batches": 3.0},
        {"fast_dev_run": 2},
    ],
)
def test_the_order_of_batches_is_lightnings(arguments: dict[str, Any]) -> None:
    """Training and validation batches come in the order and number in which Lightning runs them."""
    lightning = pytest.importorskip("lightning.pytorch")

    def run(framework: Any) -> list[Any]:
        class Own(framework.LightningModule):  # type: ignore[misc]
            pass

        for name, item in vars(Looks).items():
            if not name.startswith("__"):
                setattr(Own, name, item)
        module = Own()
        module.weight, module.seen = torch.nn.Parameter(torch.ones(())), []
        options: dict[str, Any] = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False}
        options |= {"enable_checkpointing": False, "enable_progress_bar": False, **arguments}
        if framework is lightning:
            options["enable_model_summary"] = False
        framework.Trainer(**options).fit(module, numbers(10), [numbers(4), numbers(6)])
        return module.seen

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = run(lightning)
    assert run(pl) == theirs
