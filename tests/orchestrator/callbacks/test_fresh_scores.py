"""Saves within epochs are scored by the validation that follows, where one does, and wait for no other."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import IterableDataset

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from tests.orchestrator.tiny import Tiny, loader, points, quiet_trainer


class Counts(Tiny):
    """Logs as ``v`` how many validations have begun, and keeps a diary: what came, and after which step."""

    def __init__(self) -> None:
        super().__init__()
        self.diary: list[tuple[str, int]] = []

    def note(self, event: str) -> None:
        self.diary.append((event, self.trainer.global_step))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note("batch")

    def on_train_epoch_end(self) -> None:
        self.note("epoch")

    def on_validation_start(self) -> None:
        self.note("validation")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("v", float(sum(event == "validation" for event, _ in self.diary)))


class Stream(IterableDataset[tuple[Tensor, ...]]):
    """The points without a length."""

    def __init__(self, length: int) -> None:
        self.points = points(length)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self.points[index] for index in range(len(self.points)))


def scores(checkpoint: ModelCheckpoint) -> dict[int, float]:
    """Return the score of each checkpoint by its step."""
    found = {}
    for path, score in checkpoint.best_k_models.items():
        match = re.fullmatch(r"epoch=\d+-step=(\d+)", Path(path).stem)
        assert match is not None
        found[int(match[1])] = float(score)
    return found


def expected_scores(diary: list[tuple[str, int]], every: int, foreseen: bool) -> dict[int, float]:
    """Return what should be saved after a run like `diary`: each multiple of steps with the newest value, a
    first one without any value at the first validation. `foreseen`: a validation is known to follow."""
    saved: dict[int, float] = {}
    seen, validations, waits = 0, 0, False
    for (event, step), (following, _) in zip(diary, [*diary[1:], ("end", 0)], strict=True):
        due = False
        if event == "validation":
            validations += 1
            due, waits = waits, False
        elif step // every > seen // every:
            waits = validations == 0 or (foreseen and following == "validation")
            due = not waits
        if event != "validation":
            seen = step
        if due:
            saved.setdefault(step, validations)
    return saved


@settings(max_examples=25, deadline=None)
@given(
    batches=st.integers(1, 8),
    sized=st.booleans(),
    interval=st.one_of(st.just(1.0), st.sampled_from([0.25, 0.5]), st.integers(1, 12)),
    epochs=st.sampled_from([None, 1, 2, 3]),
    every=st.integers(1, 7),
    max_steps=st.integers(1, 20),
    accumulate=st.integers(1, 2),
)
def test_each_save_has_the_newest_score(
    batches: int,
    sized: bool,
    interval: int | float,
    epochs: int | None,
    every: int,
    max_steps: int,
    accumulate: int,
) -> None:
    """However often the trainer validates, each multiple of steps is saved: with the score of the validation
    right after it, else of the one before (also where a stream's end, and so its validation, is not known
    ahead); and none is left out for a validation that does not come."""
    if isinstance(interval, float) and (epochs is None or (interval != 1.0 and not sized)):
        interval = 2
    if epochs is not None and isinstance(interval, int):
        interval = min(interval, batches)
    module = Counts()
    data = loader(2 * batches, 2) if sized else torch.utils.data.DataLoader(Stream(2 * batches), batch_size=2)
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint = ModelCheckpoint(directory, monitor="v", every_n_train_steps=every, save_top_k=-1)
        quiet_trainer(
            checkpoint,
            enable_checkpointing=True,
            max_epochs=-1,
            max_steps=max_steps,
            val_check_interval=interval,
            check_val_every_n_epoch=epochs,
            accumulate_grad_batches=accumulate,
        ).fit(module, data, loader(2, 2))
        assert scores(checkpoint) == expected_scores(module.diary, every, sized or isinstance(interval, int))
        assert len(list(Path(directory).iterdir())) == len(checkpoint.best_k_models)
    missing = [str(item.message) for item in caught if "found no such metric" in str(item.message)]
    validated = "validation" in dict(module.diary)
    assert len(missing) == (max_steps >= every and not validated)


def test_batches_counted_over_epochs_hold_back_no_save(tmp_path: Path) -> None:
    """With ten batches an epoch and a validation each fourth batch over epochs, step 14 is between two
    validations, and is saved."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", every_n_train_steps=7, save_top_k=-1)
    quiet_trainer(
        checkpoint,
        enable_checkpointing=True,
        max_epochs=-1,
        max_steps=14,
        val_check_interval=4,
        check_val_every_n_epoch=None,
    ).fit(Counts(), loader(20, 2), loader(2, 2))
    assert scores(checkpoint) == {7: 1, 14: 3}


class LogsLate(Tiny):
    """Logs ``late`` at the end of the first epoch, not before."""

    def on_train_epoch_end(self) -> None:
        self.log("late", 0.5)


def test_what_waits_at_the_end_is_saved(tmp_path: Path) -> None:
    """A save that waits for its metric when training ends happens then, and is named for the epoch that
    ran."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="late", every_n_train_steps=3, save_top_k=-1)
    quiet_trainer(checkpoint, enable_checkpointing=True).fit(LogsLate(), loader(8, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0-step=4.ckpt"]
    assert scores(checkpoint) == {4: 0.5}


@pytest.mark.parametrize("val_check_interval", [1.0, 2])
def test_a_metric_that_never_came_does_not_fail_a_training_that_is_over(
    tmp_path: Path, val_check_interval: int | float
) -> None:
    """At the end a missing metric is a warning, with or without a validation before, and the last checkpoint
    is saved all the same."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="w", every_n_train_steps=3, save_last=True)
    trainer = quiet_trainer(
        checkpoint, enable_checkpointing=True, max_steps=3, val_check_interval=val_check_interval
    )
    with pytest.warns(UserWarning, match="monitor='w'.* found no such metric"):
        trainer.fit(Counts(), loader(8, 2), loader(2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


# ---------------------------------------------------------------- who hears of each batch


class Hears(ModelCheckpoint):
    """Notes each batch before it does what its class does."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.heard = [*getattr(self, "heard", []), batch_idx]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


@pytest.mark.parametrize("arguments", [{}, {"every_n_train_steps": 2}])
def test_a_subclass_hears_of_each_batch(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """A hook of a subclass's own runs after each batch, whatever starts saves, and may call the original."""
    checkpoint = Hears(tmp_path, save_top_k=1, **arguments)
    quiet_trainer(checkpoint, enable_checkpointing=True).fit(Tiny(), loader(8, 2))
    assert checkpoint.heard == [0, 1, 2, 3]
    assert Path(checkpoint.best_model_path).name == "epoch=0-step=4.ckpt"


def test_a_hook_set_on_the_object_hears_of_each_batch(tmp_path: Path) -> None:
    """A function put in the hook's place is called, though this callback saves at epoch ends alone."""
    checkpoint, heard = ModelCheckpoint(tmp_path), []
    checkpoint.on_train_batch_end = lambda *arguments: heard.append(arguments[-1])  # type: ignore[method-assign]
    quiet_trainer(checkpoint, enable_checkpointing=True).fit(Tiny(), loader(8, 2))
    assert heard == [0, 1, 2, 3]
