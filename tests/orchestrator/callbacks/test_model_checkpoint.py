"""When ModelCheckpoint saves, and that all ranks do."""

from __future__ import annotations

import json
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.callbacks import ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import DummyLogger
from tests.orchestrator.callbacks.fake_trainer import FakeTrainer, fit, steps_saved

# ---------------------------------------------------------------- when


def test_the_first_multiple_of_epochs(tmp_path: Path) -> None:
    """every_n_epochs=2 saves after the second and the fourth epoch; 0 never."""
    trainer = fit(tmp_path, [1, 2, 3, 4, 5], ModelCheckpoint(tmp_path / "2", every_n_epochs=2))
    assert [Path(path).name for path in trainer.saved] == ["epoch=1-step=8.ckpt", "epoch=3-step=16.ckpt"]
    assert fit(tmp_path, [1, 2], ModelCheckpoint(tmp_path / "0", every_n_epochs=0)).saved == []


def test_steps_start_saves(tmp_path: Path) -> None:
    """every_n_train_steps=3 saves at each third step, and not at epoch ends."""
    trainer = fit(tmp_path, [1, 2], ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1))
    assert steps_saved(tmp_path) == {"epoch=0-step=3.ckpt": 3, "epoch=1-step=6.ckpt": 6}
    assert len(trainer.saved) == 2


def test_batches_without_a_step_start_no_save(tmp_path: Path) -> None:
    """While gradients accumulate the same step is not saved again; several steps in a batch do not hide a
    multiple."""
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    trainer = FakeTrainer(tmp_path, checkpoint)
    trainer.start()
    for batch_idx, steps in enumerate([0, 1, 0, 1, 0, 0, 3]):
        trainer.batch(batch_idx, steps)
    assert list(steps_saved(tmp_path).values()) == [2, 5]


def test_time_starts_saves(tmp_path: Path) -> None:
    """An interval of no length saves at each step; a long one never within a short run."""
    for interval, count in ((timedelta(0), 4), (timedelta(hours=1), 0)):
        checkpoint = ModelCheckpoint(tmp_path / str(count), train_time_interval=interval, save_top_k=-1)
        assert len(fit(tmp_path, [1], checkpoint).saved) == count


@pytest.mark.parametrize(
    ("changes", "arguments", "where"),
    [
        ({}, {}, "on_train_epoch_end"),
        ({"num_val_batches": []}, {}, "on_train_epoch_end"),
        ({"val_check_interval": 0.5}, {}, "on_validation_end"),
        ({"check_val_every_n_epoch": 2}, {}, "on_validation_end"),
        ({}, {"save_on_train_epoch_end": False}, "on_validation_end"),
        ({"val_check_interval": 0.5}, {"save_on_train_epoch_end": True}, "on_train_epoch_end"),
    ],
)
def test_where_epochs_save(
    tmp_path: Path, changes: dict[str, Any], arguments: dict[str, Any], where: str
) -> None:
    """An epoch's save happens at the end of training epochs or of validations, never at both."""
    trainer = FakeTrainer(tmp_path, ModelCheckpoint(tmp_path, **arguments), **changes)
    trainer.start()
    counts = {}
    for hook in ("on_validation_end", "on_train_epoch_end"):
        trainer.global_step += 1
        before = len(trainer.saved)
        trainer.call(hook)
        counts[hook] = len(trainer.saved) - before
    assert counts == {"on_validation_end": 0, "on_train_epoch_end": 0} | {where: 1}


def test_nothing_is_saved_twice_at_a_step(tmp_path: Path) -> None:
    """Without a step since the last save there is none, nor before the first step."""
    trainer = FakeTrainer(tmp_path, ModelCheckpoint(tmp_path, save_last=True))
    trainer.start()
    trainer.call("on_train_epoch_end")
    trainer.end()
    assert trainer.saved == []
    trainer.epoch()
    trainer.call("on_train_epoch_end")
    trainer.end()
    assert len(trainer.saved) == 1


@pytest.mark.parametrize("changes", [{"fast_dev_run": True}, {"sanity_checking": True}, {"fn": "validate"}])
def test_nothing_is_saved_outside_of_training(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Trial runs, sanity checks and stages other than fit save nothing."""
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_on_exception=True)
    trainer = FakeTrainer(tmp_path, checkpoint)
    trainer.call("setup", "fit")
    trainer.call("on_train_start")
    if "fn" in changes:
        trainer.state.fn = changes["fn"]
    else:
        vars(trainer).update(changes)
    trainer.epoch(v=1)
    trainer.call("on_exception", RuntimeError())
    trainer.end()
    assert trainer.saved == []


# ---------------------------------------------------------------- metrics that come late


def test_a_save_waits_for_a_metric_that_is_not_there(tmp_path: Path) -> None:
    """A step save before the first validation happens right after it, also when epochs end with a
    validation."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", every_n_train_steps=3, save_top_k=-1)
    fit(tmp_path, [0.5, 0.25], checkpoint)
    assert steps_saved(tmp_path) == {"epoch=0-step=4.ckpt": 4, "epoch=1-step=6.ckpt": 6}


def test_a_save_waits_for_the_validation_that_follows(tmp_path: Path) -> None:
    """A step save right before a validation is scored by that validation, not by the one before."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", every_n_train_steps=4, save_top_k=-1)
    fit(tmp_path, [3, 2, 1], checkpoint)
    scores = {Path(path).name: float(score) for path, score in checkpoint.best_k_models.items()}
    assert scores == {"epoch=0-step=4.ckpt": 3, "epoch=1-step=8.ckpt": 2, "epoch=2-step=12.ckpt": 1}


def test_a_metric_that_validation_did_not_log_is_an_error(tmp_path: Path) -> None:
    """The error names the metrics that are there and the one that was probably meant."""
    trainer = FakeTrainer(tmp_path, ModelCheckpoint(tmp_path, monitor="val_los"))
    trainer.start()
    with pytest.raises(MisconfigurationError, match=r"'val_los'.*\['acc', 'val_loss'\].*mean 'val_loss'\?"):
        trainer.epoch(val_loss=1.0, acc=0.5)


def test_without_a_validation_a_missing_metric_is_one_warning(tmp_path: Path) -> None:
    """As long as no validation ran the metric may still come: nothing is saved, and it is said once."""
    trainer = FakeTrainer(tmp_path, ModelCheckpoint(tmp_path, monitor="v"), num_val_batches=[])
    trainer.start()
    with pytest.warns(UserWarning, match="found no such metric") as caught:
        trainer.epoch()
        trainer.epoch()
    assert len(caught) == 1
    assert trainer.saved == []


# ---------------------------------------------------------------- several ranks


class Link:
    """Carries rank 0's values to the other ranks, which ask in the same order."""

    def __init__(self, rank: int, values: list[Any]) -> None:
        self.rank, self.values, self.asked = rank, values, 0

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value."""
        if self.rank == 0:
            self.values.append(value)
        self.asked += 1
        return self.values[self.asked - 1]


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    st.sampled_from(
        [
            {"save_top_k": 2},
            {"save_top_k": 2, "save_last": True, "filename": "x"},
            {"every_n_train_steps": 3, "save_top_k": -1},
            {"every_n_train_steps": 3, "save_last": "link"},
            {"train_time_interval": timedelta(0), "save_top_k": 3},
        ]
    ),
)
def test_all_ranks_decide_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], arguments: dict[str, Any]
) -> None:
    """Ranks that see each other's files late, and log other values between epochs, have one state and save
    at the same steps to the same paths; ranks other than 0 touch no file."""
    root = tmp_path_factory.mktemp("ranks")
    sent: list[Any] = []
    trainers = []
    for rank in range(2):
        link = Link(rank, sent)
        checkpoint = ModelCheckpoint(root, monitor="v", **arguments)
        trainer = FakeTrainer(root, checkpoint, global_rank=rank, world_size=2, strategy=link)
        trainers.append(trainer)
        trainer.start()
    for trainer in trainers:
        for value in values:
            for batch_idx in range(4):
                trainer.metrics["v"] = value + 10 * trainer.global_rank  # each rank's own, not reduced
                trainer.batch(batch_idx)
            trainer.validate(v=value)
            trainer.call("on_train_epoch_end")
            trainer.current_epoch += 1
        trainer.end()
        if trainer.global_rank == 0:
            files = steps_saved(root)
    assert trainers[0].saved == trainers[1].saved
    states = [trainer.callbacks[0].state_dict() for trainer in trainers]
    assert states[0] == states[1]
    assert steps_saved(root) == files


def test_epochs_cost_no_message(tmp_path: Path) -> None:
    """Saves at epoch and validation ends ask no other rank."""
    link = Link(0, [])
    fit(tmp_path, [1, 2], ModelCheckpoint(tmp_path, monitor="v"), world_size=2, strategy=link)
    assert link.asked == 0


# ---------------------------------------------------------------- the rest


def test_a_failure_can_be_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """save_on_exception=True saves the state at the failure, and says so."""
    checkpoint = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_epochs=10)
    trainer = FakeTrainer(tmp_path, checkpoint)
    trainer.start()
    trainer.batch(0)
    trainer.call("on_exception", RuntimeError("boom"))
    assert steps_saved(tmp_path) == {"epoch=0-step=1.ckpt": 1}
    assert "RuntimeError ended training: saved" in capsys.readouterr().out


def test_a_rank_that_fails_does_not_save_alone(tmp_path: Path) -> None:
    """On a group a failure is not saved, since the other ranks would not take part; a warning says so."""
    trainer = FakeTrainer(tmp_path, ModelCheckpoint(tmp_path, save_on_exception=True), world_size=2)
    trainer.start()
    trainer.global_step = 3
    with pytest.warns(UserWarning, match="ranks save together"):
        trainer.call("on_exception", RuntimeError("boom"))
    assert trainer.saved == []


def test_weights_alone_can_be_saved(tmp_path: Path) -> None:
    """save_weights_only=True is handed to the trainer."""
    checkpoint = ModelCheckpoint(tmp_path, save_weights_only=True)
    fit(tmp_path, [1], checkpoint)
    assert json.loads(Path(checkpoint.best_model_path).read_text())["weights_only"] is True


def test_loggers_hear_of_each_save(tmp_path: Path) -> None:
    """Each logger gets the callback after the checkpoint is there, on rank 0 only."""
    heard: list[bool] = []

    class Listening(DummyLogger):
        def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
            heard.append(Path(checkpoint_callback.best_model_path).exists())

    for rank in (0, 1):
        fit(tmp_path, [1, 2], ModelCheckpoint(tmp_path), loggers=[Listening()], global_rank=rank)
    assert heard == [True, True]


def test_verbose_tells_each_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line says what was reached and saved, or that it was not good enough."""
    fit(tmp_path, [1, 2], ModelCheckpoint(tmp_path, monitor="v", verbose=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Epoch 0, step 4: v reached 1.00000 (best 1.00000), saved ")
    assert lines[1] == "Epoch 1, step 8: v is not among the best 1"


def test_callbacks_that_differ_have_different_keys() -> None:
    """What is watched and what starts saves is in the key, so states of several callbacks do not mix."""
    callbacks = [
        ModelCheckpoint(),
        ModelCheckpoint(monitor="a"),
        ModelCheckpoint(monitor="a", mode="max"),
        ModelCheckpoint(every_n_train_steps=5),
        ModelCheckpoint(every_n_epochs=5),
        ModelCheckpoint(train_time_interval=timedelta(minutes=5)),
    ]
    keys = {callback.state_key for callback in callbacks}
    assert len(keys) == len(callbacks)
    assert all(key.startswith("ModelCheckpoint{") for key in keys)


def test_it_pickles(tmp_path: Path) -> None:
    """A copy goes on where the original is."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", train_time_interval=timedelta(hours=1))
    copy = pickle.loads(pickle.dumps(checkpoint))
    assert copy.state_dict() == checkpoint.state_dict()
    assert copy.state_key == checkpoint.state_key
