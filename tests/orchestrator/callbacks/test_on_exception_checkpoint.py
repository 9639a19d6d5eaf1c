"""OnExceptionCheckpoint: what a failure leaves, and that the same script goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, quiet_trainer


class Fails(Tiny):
    """Fails at a step, once."""

    def __init__(self, at: int = 5) -> None:
        super().__init__()
        self.at = at

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.at:
            self.at = -1
            raise KeyboardInterrupt if batch_idx == 2 else RuntimeError("boom")


def trainer(root: Path) -> pl.Trainer:
    return quiet_trainer(OnExceptionCheckpoint(root), max_epochs=3, enable_checkpointing=True)


@pytest.mark.parametrize(("at", "error"), [(5, RuntimeError), (6, KeyboardInterrupt)])
def test_the_same_call_goes_on_after_a_failure(tmp_path: Path, at: int, error: type[BaseException]) -> None:
    """fit without a path starts from the file of the failure, ends like a whole run, and removes the file."""
    with pytest.raises(error):
        trainer(tmp_path).fit(Fails(at), loader(16))
    assert [path.name for path in tmp_path.iterdir()] == ["on_exception.ckpt"]
    module, again = Tiny(), trainer(tmp_path)
    again.fit(module, loader(16))
    assert again.global_step == 12
    assert list(tmp_path.iterdir()) == []
    whole = Tiny()
    quiet_trainer(max_epochs=3).fit(whole, loader(16))
    assert_equal_weights(module, whole)


def test_other_calls_leave_the_file(tmp_path: Path) -> None:
    """A failure before the first step saves nothing; predicting neither reads nor removes the file."""
    with pytest.raises(RuntimeError):
        trainer(tmp_path).fit(Fails(at=0), loader(16))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError):
        trainer(tmp_path).fit(Fails(), loader(16))

    class Predicts(Tiny):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return 0

    trainer(tmp_path).predict(Predicts(), loader(4))
    assert [path.name for path in tmp_path.iterdir()] == ["on_exception.ckpt"]


def test_it_stands_for_a_checkpoint_callback(tmp_path: Path) -> None:
    """A Trainer that has one adds no ModelCheckpoint, counts it among its own, and puts it last."""
    found = quiet_trainer(OnExceptionCheckpoint(tmp_path), pl.Callback(), enable_checkpointing=True)
    assert [type(item) for item in found.callbacks] == [pl.Callback, OnExceptionCheckpoint]
    assert found.checkpoint_callbacks == [found.checkpoint_callback] == [found.callbacks[1]]
    with pytest.raises(MisconfigurationError, match="has OnExceptionCheckpoint among its callbacks"):
        quiet_trainer(OnExceptionCheckpoint(tmp_path))


def test_the_newest_of_all_is_the_last(tmp_path: Path) -> None:
    """ckpt_path='best' is ModelCheckpoint's, whatever stands before it; 'last' finds the failure's too."""
    best = ModelCheckpoint(tmp_path / "best", every_n_train_steps=4)
    failing = OnExceptionCheckpoint(tmp_path / "failed")
    broken = quiet_trainer(failing, best, max_epochs=3, enable_checkpointing=True)
    with pytest.raises(RuntimeError):
        broken.fit(Fails(), loader(16))
    steps = []
    for name in ("last", "best"):
        note = quiet_trainer(failing, best, max_epochs=3, enable_checkpointing=True)

        class Stops(Tiny):
            def on_train_start(self) -> None:
                steps.append(self.trainer.global_step)
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            note.fit(Stops(), loader(16), ckpt_path=name)
    assert steps == [5, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("s3://bucket",), "dirpath='s3://bucket'"), ((3,), "dirpath=3"), (("a", ""), "filename=''")],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    """Places that cannot be are an error that names them."""
    with pytest.raises(MisconfigurationError, match=rf"OnExceptionCheckpoint\({message}\)"):
        OnExceptionCheckpoint(*arguments)
