"""When training ends, what runs before it does, and how much of the data is used."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import orchestrator as pl
from tests.orchestrator.tiny import (
    Tiny,
    Validated,
    assert_equal_weights,
    loader,
    loss_of,
    points,
    quiet_trainer,
)

BATCHES = 5


class Diary(pl.Callback):
    """Writes down, in short words, what runs."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.lines.append("start")

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.lines.append(f"{trainer.current_epoch}.{batch_idx}")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.lines.append("sanity" if trainer.sanity_checking else "val")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.lines.append("epoch")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.lines.append("end")


class StopsAt(pl.Callback):
    """Asks to stop after a batch, once."""

    def __init__(self, epoch: int, batch_idx: int) -> None:
        self.at = epoch, batch_idx

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.should_stop = True


def diary_of(*callbacks: pl.Callback, val: bool = True, **arguments: Any) -> str:
    """What a fit of five batches an epoch writes down."""
    diary = Diary()
    trainer = quiet_trainer(*callbacks, diary, **arguments)
    trainer.fit(Validated(), loader(4 * BATCHES), loader(4) if val else None)
    return " ".join(diary.lines)


def epoch_of(number: int, batches: int = BATCHES, val: str = "val") -> str:
    """The lines of a whole epoch."""
    lines = [f"{number}.{index}" for index in range(batches)]
    return " ".join([*lines, *([val] if val else []), "epoch"])


# ---------------------------------------------------------------- limits of training


def test_max_epochs_ends_after_whole_epochs() -> None:
    """max_epochs epochs run, each with its validation."""
    assert diary_of(max_epochs=2) == f"start {epoch_of(0)} {epoch_of(1)} end"


@pytest.mark.parametrize("limits", [{"max_epochs": 0}, {"max_steps": 0}, {"limit_train_batches": 0}])
def test_no_training_calls_no_training_hook(limits: dict[str, int]) -> None:
    """A limit of 0 trains nothing; the sanity check still runs."""
    assert diary_of(num_sanity_val_steps=1, **limits) == "sanity"


def test_max_steps_ends_within_an_epoch() -> None:
    """max_steps optimizer steps run; the epoch that they end in ends without validation."""
    assert diary_of(max_steps=7, max_epochs=-1) == f"start {epoch_of(0)} 1.0 1.1 epoch end"
    assert diary_of(max_steps=BATCHES, max_epochs=-1) == f"start {epoch_of(0)} end"


def test_the_first_limit_ends_training() -> None:
    """Of max_steps and max_epochs the one that is reached first counts."""
    assert diary_of(max_steps=2, max_epochs=2).endswith("0.1 epoch end")
    assert diary_of(max_steps=99, max_epochs=1) == f"start {epoch_of(0)} end"


def test_max_steps_counts_steps_not_batches() -> None:
    """With accumulation a step takes several batches."""
    assert (
        diary_of(max_steps=2, max_epochs=-1, accumulate_grad_batches=2) == "start 0.0 0.1 0.2 0.3 epoch end"
    )


def test_no_limit_is_a_thousand_epochs_and_is_said() -> None:
    """Without max_epochs and max_steps there are 1000 epochs, with a warning."""
    trainer = quiet_trainer(StopsAt(1, 0), max_epochs=None)
    with pytest.warns(UserWarning, match=r"max_epochs=None\) trains for 1000 epochs"):
        trainer.fit(Tiny(), loader(4))
    assert trainer.current_epoch == 2


def test_minus_one_is_no_limit() -> None:
    """max_epochs=-1 goes on until somebody stops."""
    trainer = quiet_trainer(StopsAt(1001, 0), max_epochs=-1)
    trainer.fit(Tiny(), loader(4))
    assert trainer.current_epoch == 1002


# ---------------------------------------------------------------- asking to stop


def test_stopping_within_an_epoch_validates_first() -> None:
    """should_stop ends training after the batch, with validation and the end of the epoch."""
    assert diary_of(StopsAt(1, 1), max_epochs=5) == f"start {epoch_of(0)} 1.0 1.1 val epoch end"


def test_stopping_does_not_validate_twice() -> None:
    """Where validation has just run, or the epoch is one without, stopping adds none."""
    assert diary_of(StopsAt(0, 1), val_check_interval=2) == "start 0.0 0.1 val epoch end"
    assert diary_of(StopsAt(0, 1), check_val_every_n_epoch=2) == "start 0.0 0.1 epoch end"
    assert diary_of(StopsAt(0, 1), val=False) == "start 0.0 0.1 epoch end"


def test_stopping_at_the_last_batch_ends_the_whole_epoch() -> None:
    """A wish to stop at an epoch's last batch leaves the epoch complete: its plateau scheduler steps."""

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=-1, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_loss"}

    class Constant(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", 1.0)

    for batch_idx, rate in ((BATCHES - 1, 0.25), (1, 0.5)):
        trainer = quiet_trainer(StopsAt(1, batch_idx), max_epochs=9)
        trainer.fit(Constant(configure), loader(4 * BATCHES), loader(4))
        assert trainer.optimizers[0].param_groups[0]["lr"] == rate
        assert trainer.current_epoch == 2


@pytest.mark.parametrize(
    ("minimum", "expected"),
    [
        ({"min_epochs": 2}, f"start {epoch_of(0)} {epoch_of(1)} end"),
        ({"min_steps": 7}, f"start {epoch_of(0)} 1.0 1.1 val epoch end"),
        ({"min_epochs": 1, "min_steps": 4}, f"start {epoch_of(0)} end"),
        ({"min_epochs": 0, "min_steps": 0}, "start 0.0 val epoch end"),
    ],
)
def test_stopping_waits_for_the_minimum(minimum: dict[str, int], expected: str) -> None:
    """A wish to stop is kept until min_epochs and min_steps are reached, and not forgotten."""
    assert diary_of(StopsAt(0, 0), max_epochs=9, **minimum) == expected


def test_a_wish_from_before_does_not_count() -> None:
    """should_stop is reset when a call begins."""
    trainer = quiet_trainer()
    trainer.should_stop = True
    trainer.fit(Tiny(), loader(8))
    assert trainer.global_step == 2


def test_minus_one_from_on_train_batch_start_skips_the_rest_of_the_epoch() -> None:
    """The epoch ends there: without that batch and validation, with its hooks and its schedulers."""

    class Skips(Validated):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if (self.current_epoch, batch_idx) in ((0, 2), (2, 0)) else None

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    diary = Diary()
    trainer = quiet_trainer(diary, max_epochs=3)
    trainer.fit(Skips(configure), loader(4 * BATCHES), loader(4))
    assert " ".join(diary.lines) == f"start 0.0 0.1 epoch {epoch_of(1)} epoch end"
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125
    assert (trainer.global_step, trainer.batches_seen, trainer.samples_seen) == (7, 7, 28)


# ---------------------------------------------------------------- how much data


@pytest.mark.parametrize(
    ("limit", "batches"), [(1, 1), (3, 3), (99, 5), (1.0, 5), (0.5, 2), (0.2, 1), (None, 5), (4.0, 4)]
)
def test_limits_are_numbers_or_shares(limit: Any, batches: int) -> None:
    """An int is a number of batches, a float up to 1.0 a share, rounded down, for all four kinds of data."""
    trainer = quiet_trainer(
        limit_train_batches=limit,
        limit_val_batches=limit,
        limit_test_batches=limit,
        limit_predict_batches=limit,
    )
    seen = {"train": 0, "validation": 0, "test": 0}

    class Counts(Validated):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen["train"] += 1
            return loss_of(self.net, batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen["validation"] += 1

        def test_step(self, batch: Any, batch_idx: int) -> None:
            seen["test"] += 1

    module, data = Counts(), loader(4 * BATCHES)
    trainer.fit(module, data, data)
    assert (trainer.num_training_batches, trainer.num_val_batches) == (batches, [batches])
    trainer.test(module, data, verbose=False)
    assert len(trainer.predict(module, data)) == batches
    assert seen == dict.fromkeys(seen, batches)


def test_a_limit_reads_no_batch_too_many() -> None:
    """A limited evaluation draws exactly its batches from the loader."""
    drawn: list[int] = []

    class Draws(IterableDataset[Any]):
        def __iter__(self) -> Any:
            for index, item in enumerate(points(8)):  # type: ignore[var-annotated, arg-type]
                drawn.append(index)
                yield item

    trainer = quiet_trainer(limit_val_batches=2)
    trainer.validate(Validated(), DataLoader(Draws(), batch_size=2), verbose=False)
    assert drawn == [0, 1, 2, 3]


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_evaluating_nothing_returns_nothing(entry: str) -> None:
    """A limit of 0 leaves out the whole evaluation and does not ask for its data."""

    class NoData(Validated):
        def val_dataloader(self) -> Any:
            raise AssertionError("not needed")

        test_dataloader = predict_dataloader = val_dataloader

    kind = {"validate": "val"}.get(entry, entry)
    assert getattr(quiet_trainer(**{f"limit_{kind}_batches": 0}), entry)(NoData()) == []


def test_fit_without_validation_asks_for_no_validation_data() -> None:
    """limit_val_batches=0 leaves validation out of fit, and its loader hook is not called."""

    class NoData(Validated):
        def val_dataloader(self) -> Any:
            raise AssertionError("not needed")

    trainer = quiet_trainer(limit_val_batches=0, num_sanity_val_steps=2)
    trainer.fit(NoData(), loader(8))
    assert trainer.num_val_batches == []


def test_fast_dev_run_touches_everything_once() -> None:
    """fast_dev_run=2 runs two batches of training and validation and nothing else."""
    diary = Diary()
    trainer = pl.Trainer(
        fast_dev_run=2, accelerator="cpu", callbacks=diary, enable_progress_bar=False, max_epochs=7
    )
    trainer.fit(Validated(), loader(4 * BATCHES), loader(4 * BATCHES))
    assert " ".join(diary.lines) == "start 0.0 0.1 val epoch end"
    assert trainer.num_val_batches == [2]


# ---------------------------------------------------------------- when validation runs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"val_check_interval": 2},
            "start 0.0 0.1 val 0.2 0.3 val 0.4 epoch 1.0 1.1 val 1.2 1.3 val 1.4 epoch end",
        ),
        (
            {"val_check_interval": 0.4},
            "start 0.0 0.1 val 0.2 0.3 val 0.4 epoch 1.0 1.1 val 1.2 1.3 val 1.4 epoch end",
        ),
        (
            {"val_check_interval": 0.1, "limit_train_batches": 2},
            "start 0.0 val 0.1 val epoch 1.0 val 1.1 val epoch end",
        ),
        ({"val_check_interval": 1, "limit_train_batches": 1}, "start 0.0 val epoch 1.0 val epoch end"),
        ({"check_val_every_n_epoch": 2}, f"start {epoch_of(0, val='')} {epoch_of(1)} end"),
        ({"check_val_every_n_epoch": 3}, f"start {epoch_of(0, val='')} {epoch_of(1, val='')} end"),
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 3},
            "start 0.0 0.1 0.2 val 0.3 0.4 epoch 1.0 val 1.1 1.2 1.3 val 1.4 epoch end",
        ),
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 7},
            "start 0.0 0.1 0.2 0.3 0.4 epoch 1.0 1.1 val 1.2 1.3 1.4 epoch end",
        ),
    ],
)
def test_validation_runs_when_it_is_due(arguments: dict[str, Any], expected: str) -> None:
    """val_check_interval is a share or a number of batches, in every n-th epoch or over all of them."""
    assert diary_of(max_epochs=2, **arguments) == expected


def test_validation_of_a_stream_runs_at_its_end() -> None:
    """A loader without a length is validated after its last batch, though nobody knew which it would be."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([points(12)[index] for index in range(12)])

    diary = Diary()
    trainer = quiet_trainer(diary)
    trainer.fit(Validated(), DataLoader(Stream(), batch_size=4), loader(4))
    assert " ".join(diary.lines) == f"start {epoch_of(0, 3)} end"
    assert trainer.num_training_batches == float("inf")
    assert (trainer.batches_seen, trainer.samples_seen) == (3, 12)


# ---------------------------------------------------------------- calling again


def test_repeated_fits_continue() -> None:
    """A second fit goes on counting, and trains only what its limits leave."""
    trainer, module = quiet_trainer(max_epochs=2), Tiny()
    trainer.fit(module, loader(8))
    weights = module.net[0].weight.clone()
    trainer.fit(module, loader(8))
    assert (trainer.current_epoch, trainer.global_step) == (2, 4)
    assert torch.equal(module.net[0].weight, weights)

    trainer.settings = dataclasses.replace(trainer.settings, max_epochs=3)
    trainer.fit(module, loader(8))
    assert (trainer.current_epoch, trainer.global_step, trainer.samples_seen) == (3, 6, 24)
    assert not torch.equal(module.net[0].weight, weights)


def test_a_fit_after_a_failure_begins_its_epoch_anew() -> None:
    """After an exception in the middle of an epoch another fit starts that epoch from its first batch."""

    class Fails(Tiny):
        failed = False

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            if not self.failed and (self.current_epoch, batch_idx) == (1, 1):
                self.failed = True
                raise RuntimeError("planned")
            return None

    trainer, module = quiet_trainer(max_epochs=2), Fails()
    with pytest.raises(RuntimeError, match="planned"):
        trainer.fit(module, loader(8))
    assert (trainer.current_epoch, trainer.global_step) == (1, 3)
    trainer.fit(module, loader(8))
    assert (trainer.current_epoch, trainer.global_step, trainer.batches_seen) == (2, 5, 4)


def test_each_call_says_what_it_is() -> None:
    """During a call the trainer names it, from setup on; afterwards it is none of them."""
    seen: dict[str, list[str]] = {}
    words = ("training", "validating", "testing", "predicting", "sanity_checking")

    class Looks(pl.Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            seen[f"setup {stage}"] = [word for word in words if getattr(trainer, word)]

        def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
            seen["sanity"] = [word for word in words if getattr(trainer, word)]

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            seen[f"val in {trainer.state.fn}"] = [word for word in words if getattr(trainer, word)]

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen["epoch end"] = [word for word in words if getattr(trainer, word)]

    trainer, module = quiet_trainer(Looks(), num_sanity_val_steps=1), Validated()
    trainer.fit(module, loader(4), loader(4))
    trainer.test(module, loader(4), verbose=False)
    trainer.predict(module, loader(4))
    trainer.validate(module, loader(4), verbose=False)
    assert seen == {
        "setup fit": ["training"],
        "sanity": ["sanity_checking"],
        "val in fit": ["validating"],
        "epoch end": ["training"],
        "setup test": ["testing"],
        "setup predict": ["predicting"],
        "setup validate": ["validating"],
        "val in validate": ["validating"],
    }
    assert not any(getattr(trainer, word) for word in words)


# ---------------------------------------------------------------- what is left as it was


@pytest.mark.parametrize("steps", [2, -1])
def test_the_sanity_check_leaves_no_trace(steps: int) -> None:
    """Random streams, metrics, modes and the order of training data are as without it."""

    class Noisy(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("noise", torch.rand(()) + random.random() + numpy.random.rand())

    def train(steps: int) -> tuple[Any, pl.Trainer]:
        pl.seed_everything(3, verbose=False)
        trainer, module = quiet_trainer(num_sanity_val_steps=steps), Noisy(dropout=0.5)
        trainer.fit(module, loader(12, shuffle=True), loader(16, shuffle=True))
        return module, trainer

    checked, trainer = train(steps)
    state = torch.get_rng_state(), random.getstate()
    assert trainer.num_sanity_val_batches == [2 if steps == 2 else 4]
    unchecked, other = train(0)
    assert_equal_weights(checked, unchecked)
    assert trainer.callback_metrics == other.callback_metrics
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()


class Parts(Validated):
    """Has a part that its author keeps in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
        self.modes: list[tuple[bool, bool, bool]] = []

    def note(self) -> None:
        self.modes.append((self.training, self.net.training, self.frozen[0].training))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note()
        return loss_of(self.net, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note()

    test_step = predict_step = validation_step


def test_each_part_of_a_module_keeps_its_mode() -> None:
    """What is in eval mode before training stays so; evaluation puts each part back into its own mode."""
    trainer, module = quiet_trainer(num_sanity_val_steps=1, val_check_interval=1), Parts()
    trainer.fit(module, loader(8), loader(4))
    train, evaluate = (True, True, False), (False, False, False)
    assert module.modes == [evaluate, train, evaluate, train, evaluate]
    for entry in ("validate", "test", "predict"):
        getattr(trainer, entry)(module, loader(4))
        module.note()
        assert module.modes[-2:] == [evaluate, train]


def test_a_module_in_eval_mode_trains_in_it_and_is_told() -> None:
    """fit does not change modes; a module that is in eval mode as a whole gets a warning."""
    module = Parts()
    module.eval()
    with pytest.warns(UserWarning, match=r"Parts is in eval mode.*Call module\.train\(\)"):
        quiet_trainer().fit(module, loader(4))
    assert module.modes == [(False, False, False)]


def test_evaluation_modes_may_be_the_modules_own() -> None:
    """on_validation_model_eval and on_validation_model_train replace what is done to the modes."""

    class Own(Parts):
        def on_validation_model_eval(self) -> None:
            self.net.eval()

        def on_validation_model_train(self) -> None:
            self.net.train()

    module = Own()
    quiet_trainer().fit(module, loader(4), loader(4))
    assert module.modes == [(True, True, False), (True, False, False)]
    assert module.net.training


@pytest.mark.parametrize("inference_mode", [True, False])
def test_evaluation_needs_no_gradients(inference_mode: bool) -> None:
    """Outside of fit evaluation runs in inference mode if wanted, within fit without gradients."""
    seen: list[tuple[bool, bool]] = []

    class Looks(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    trainer, module = quiet_trainer(inference_mode=inference_mode), Looks()
    trainer.fit(module, loader(4), loader(4))
    trainer.validate(module, loader(4), verbose=False)
    assert seen == [(False, False), (False, inference_mode)]


# ---------------------------------------------------------------- several loaders


def test_a_step_gets_what_it_asks_for() -> None:
    """dataloader_idx is given to a step that asks for it; another third parameter keeps its default."""
    seen: list[Any] = []

    class Named(Validated):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 7) -> None:
            seen.append(dataloader_idx)

    class Other(Validated):
        def validation_step(self, batch: Any, batch_idx: int, prefix: Any = "val") -> None:
            seen.append(prefix)

    class Anything(Validated):
        def validation_step(self, *args: Any) -> None:
            seen.append(len(args))

    class Little(Validated):
        def validation_step(self, batch: Any) -> None:
            seen.append("batch")

    for kind in (Named, Other, Anything, Little):
        quiet_trainer().validate(kind(), loader(4), verbose=False)
        quiet_trainer().validate(kind(), [loader(4), loader(4)], verbose=False)
    assert seen == [0, 0, 1, "val", 0, 1, 2, 3, 3, *["batch"] * 3]


def test_predictions_come_by_loader_and_batch() -> None:
    """predict returns a list of batches, one a loader when there are several, or nothing if not wanted."""
    trainer, module = quiet_trainer(), Validated()
    one, two = loader(6), loader(4)
    with torch.no_grad():
        expected = [[module.net(batch[0]) for batch in item] for item in (one, two)]
    assert all(map(torch.equal, trainer.predict(module, one), expected[0]))
    found = trainer.predict(module, [one, two])
    assert [len(item) for item in found] == [2, 1]
    assert torch.equal(found[1][0], expected[1][0])
    assert trainer.predict(module, one, return_predictions=False) is None
