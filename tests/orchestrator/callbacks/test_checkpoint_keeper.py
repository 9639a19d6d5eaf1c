"""Which checkpoints are kept, what they are called and where they lie."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from orchestrator.callbacks import ModelCheckpoint
from orchestrator.checkpoint.writer import failure
from orchestrator.loggers import CSVLogger, TensorBoardLogger
from tests.orchestrator.callbacks.fake_trainer import FakeTrainer, fit, steps_saved


def test_without_a_monitor_the_newest_is_kept(tmp_path: Path) -> None:
    """By default one checkpoint stays, that of the last epoch."""
    checkpoint = ModelCheckpoint(tmp_path)
    fit(tmp_path, [3, 1, 2], checkpoint)
    assert steps_saved(tmp_path) == {"epoch=2-step=12.ckpt": 12}
    assert checkpoint.best_model_path == str(tmp_path / "epoch=2-step=12.ckpt")
    assert checkpoint.best_model_score is None


@pytest.mark.parametrize(("mode", "kept"), [("min", {4, 8}), ("max", {12, 16})])
def test_the_best_are_kept(tmp_path: Path, mode: Any, kept: set[int]) -> None:
    """With a monitor the best k stay, whatever their order, and the attributes tell which."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", save_top_k=2, mode=mode)
    fit(tmp_path, [2, 1, 3, 4], checkpoint)
    assert set(steps_saved(tmp_path).values()) == kept
    best, worst = (1.0, 2.0) if mode == "min" else (4.0, 3.0)
    assert checkpoint.best_model_score == best
    assert checkpoint.kth_value == worst
    assert sorted(map(float, checkpoint.best_k_models.values())) == sorted([best, worst])
    assert checkpoint.best_k_models[checkpoint.best_model_path] == best
    assert checkpoint.best_k_models[checkpoint.kth_best_model_path] == worst
    assert all(Path(path).exists() for path in checkpoint.best_k_models)


def test_all_or_none_can_be_kept(tmp_path: Path) -> None:
    """save_top_k=-1 keeps every checkpoint, 0 none."""
    for k, count in ((-1, 3), (0, 0)):
        directory = tmp_path / str(k)
        directory.mkdir()
        fit(tmp_path, [1, 2, 3], ModelCheckpoint(directory, monitor="v", save_top_k=k))
        assert len(steps_saved(directory)) == count


def test_nan_is_worst(tmp_path: Path) -> None:
    """A NaN is kept only until there is a number, and its score is an infinity."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", mode="max")
    trainer = FakeTrainer(tmp_path, checkpoint)
    trainer.start()
    trainer.epoch(v=math.nan)
    assert checkpoint.best_model_score == -math.inf
    trainer.epoch(v=-100.0)
    trainer.epoch(v=math.nan)
    assert steps_saved(tmp_path) == {"epoch=1-step=8.ckpt": 8}


def test_a_checkpoint_goes_after_its_successor_is_there(tmp_path: Path) -> None:
    """When saving fails, the old file is still there, and the attributes still tell of it."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", save_last=True)
    trainer = FakeTrainer(tmp_path, checkpoint)
    trainer.start()
    trainer.epoch(v=2)
    before = checkpoint.state_dict()
    trainer.fails = True
    with pytest.raises(OSError, match="disk full"):
        trainer.epoch(v=1)
    assert checkpoint.state_dict() == before
    assert set(steps_saved(tmp_path).values()) == {4}


# ---------------------------------------------------------------- names


def test_names_are_made_of_metrics(tmp_path: Path) -> None:
    """The template is filled with metrics, epoch and step; a slash makes a folder."""
    for filename, auto, expected in (
        ("{epoch:02d}-{v:.2f}", True, "epoch=00-v=0.12.ckpt"),
        ("e{epoch}-{v:.1f}", False, "e0-0.1.ckpt"),
        ("{step}/model", True, "step=4/model.ckpt"),
    ):
        checkpoint = ModelCheckpoint(tmp_path, filename=filename, auto_insert_metric_name=auto)
        fit(tmp_path, [0.123], checkpoint)
        assert checkpoint.best_model_path == str(tmp_path / expected)
        assert Path(checkpoint.best_model_path).exists()


def test_logged_epoch_and_step_win(tmp_path: Path) -> None:
    """A metric called step or epoch is used in names, as a whole number."""
    trainer = FakeTrainer(tmp_path, ModelCheckpoint(tmp_path))
    trainer.start()
    trainer.epoch(step=77.0, epoch=5.0)
    assert steps_saved(tmp_path) == {"epoch=5-step=77.ckpt": 4}


def test_the_signs_of_names_can_be_changed(tmp_path: Path) -> None:
    """Subclasses may join, equate, end and number differently."""

    class Own(ModelCheckpoint):
        CHECKPOINT_JOIN_CHAR = "_"
        CHECKPOINT_EQUALS_CHAR = ":"
        CHECKPOINT_NAME_LAST = "{epoch}-newest"
        FILE_EXTENSION = ".pt"
        STARTING_VERSION = 5

    (tmp_path / "epoch:0_step:4.pt").write_text('{"step": 0}')
    fit(tmp_path, [1], Own(tmp_path, save_last=True))
    assert steps_saved(tmp_path) == {
        "epoch:0-newest.pt": 4,
        "epoch:0_step:4.pt": 0,
        "epoch:0_step:4_v5.pt": 4,
    }


def test_files_that_were_there_are_not_overwritten(tmp_path: Path) -> None:
    """A taken name gets a version, also that of the last one, and the user's files stay."""
    for name in ("best.ckpt", "best-v1.ckpt", "last.ckpt"):
        (tmp_path / name).write_text('{"step": -1}')
    checkpoint = ModelCheckpoint(tmp_path, filename="best", monitor="v", save_last=True)
    fit(tmp_path, [3, 2, 1], checkpoint)
    assert steps_saved(tmp_path) == {
        "best.ckpt": -1,
        "best-v1.ckpt": -1,
        "best-v2.ckpt": 12,
        "last.ckpt": -1,
        "last-v1.ckpt": 12,
    }
    assert Path(checkpoint.last_model_path).name == "last-v1.ckpt"


def test_without_versions_files_are_replaced(tmp_path: Path) -> None:
    """enable_version_counter=False takes the name as it is."""
    (tmp_path / "best.ckpt").write_text('{"step": -1}')
    fit(tmp_path, [1], ModelCheckpoint(tmp_path, filename="best", enable_version_counter=False))
    assert steps_saved(tmp_path) == {"best.ckpt": 4}


@pytest.mark.parametrize("k", [-1, 2])
def test_equal_names_are_told_apart(tmp_path: Path, k: int) -> None:
    """Several checkpoints that are kept under one name get versions."""
    fit(tmp_path, [3, 2, 1], ModelCheckpoint(tmp_path, filename="x", monitor="v", save_top_k=k))
    expected = {"x.ckpt": 4, "x-v1.ckpt": 8, "x-v2.ckpt": 12} if k == -1 else {"x.ckpt": 12, "x-v1.ckpt": 8}
    assert steps_saved(tmp_path) == expected


def test_two_callbacks_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """Callbacks that save under one name into one directory keep their own files."""
    checkpoints = [ModelCheckpoint(tmp_path, monitor=name) for name in ("v", "w")]
    trainer = FakeTrainer(tmp_path, *checkpoints)
    trainer.start()
    trainer.epoch(v=2, w=1)
    trainer.epoch(v=1, w=2)
    assert steps_saved(tmp_path) == {"epoch=1-step=8.ckpt": 8, "epoch=0-step=4-v1.ckpt": 4}
    assert [Path(checkpoint.best_model_path).exists() for checkpoint in checkpoints] == [True, True]


# ---------------------------------------------------------------- the last one


def test_the_last_one_is_another_name(tmp_path: Path) -> None:
    """save_last=True takes no second save: last.ckpt is the same file as the newest checkpoint."""
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    trainer = fit(tmp_path, [1, 2], checkpoint)
    assert len(trainer.saved) == 2
    assert os.path.samefile(checkpoint.last_model_path, checkpoint.best_model_path)
    assert steps_saved(tmp_path) == {"epoch=1-step=8.ckpt": 8, "last.ckpt": 8}


def test_the_last_one_is_newer_than_the_best(tmp_path: Path) -> None:
    """When a checkpoint is not among the best, it is saved as the last one, and the best stays."""
    fit(tmp_path, [1, 2, 3], ModelCheckpoint(tmp_path, monitor="v", save_last=True))
    assert steps_saved(tmp_path) == {"epoch=0-step=4.ckpt": 4, "last.ckpt": 12}


def test_only_the_last_one_can_be_kept(tmp_path: Path) -> None:
    """With save_top_k=0 and save_last=True there is one file, and it is always the newest."""
    trainer = fit(tmp_path, [1, 2, 3], ModelCheckpoint(tmp_path, save_top_k=0, save_last=True))
    assert steps_saved(tmp_path) == {"last.ckpt": 12}
    assert len(trainer.saved) == 3


def test_the_last_one_can_be_a_link(tmp_path: Path) -> None:
    """save_last="link" makes a relative link to the newest checkpoint that was kept."""
    fit(tmp_path, [2, 1, 3], ModelCheckpoint(tmp_path, monitor="v", save_last="link"))
    assert os.readlink(tmp_path / "last.ckpt") == "epoch=1-step=8.ckpt"
    assert steps_saved(tmp_path) == {"epoch=1-step=8.ckpt": 8, "last.ckpt": 8}


def test_a_name_of_the_last_one_that_changes_leaves_one_file(tmp_path: Path) -> None:
    """When the last one's name has the epoch in it, the one before is removed."""

    class Own(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{epoch}-last"

    fit(tmp_path, [1, 2, 3], Own(tmp_path, save_last=True))
    assert set(steps_saved(tmp_path)) == {"epoch=2-step=12.ckpt", "epoch=2-last.ckpt"}


def test_the_end_saves_the_last_one_if_nothing_was(tmp_path: Path) -> None:
    """A run that ends before its first save leaves the last checkpoint, if one is wanted."""
    for save_last, expected in ((True, {"last.ckpt": 8}), (None, {})):
        directory = tmp_path / str(save_last)
        directory.mkdir()
        fit(tmp_path, [1, 2], ModelCheckpoint(directory, every_n_epochs=10, save_last=save_last))
        assert steps_saved(directory) == expected


# ---------------------------------------------------------------- where


def test_checkpoints_lie_in_the_loggers_version(tmp_path: Path) -> None:
    """By default they are in the first logger's version directory, whatever its sub_dir."""
    for logger in (
        CSVLogger(tmp_path, "exp", version=3),
        TensorBoardLogger(tmp_path, "exp", "mine", sub_dir="fold"),
    ):
        checkpoint = ModelCheckpoint()
        fit(tmp_path, [1], checkpoint, loggers=[logger])
        version = "mine" if logger.version == "mine" else "version_3"
        assert checkpoint.dirpath == str(tmp_path / "exp" / version / "checkpoints")
        assert len(steps_saved(Path(checkpoint.dirpath))) == 1


def test_without_a_logger_checkpoints_lie_in_the_root(tmp_path: Path) -> None:
    """Without a logger they are in default_root_dir/checkpoints, and no directory is made before the first
    save."""
    checkpoint = ModelCheckpoint()
    trainer = FakeTrainer(tmp_path, checkpoint)
    trainer.start()
    assert list(tmp_path.iterdir()) == []
    trainer.epoch()
    assert checkpoint.best_model_path == str(tmp_path / "checkpoints" / "epoch=0-step=4.ckpt")


def test_a_relative_directory_is_that_of_the_constructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is fixed when the callback is made: another process or a later chdir does not move it."""
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        checkpoint = ModelCheckpoint("own")
    assert checkpoint.dirpath == str(tmp_path / "own")


# ---------------------------------------------------------------- resuming


def resume(root: Path, old: ModelCheckpoint, new: ModelCheckpoint, ckpt_path: str) -> FakeTrainer:
    """Return a trainer that has taken up the state of `old` from a checkpoint at the end of the second
    epoch."""
    trainer = FakeTrainer(root, new, ckpt_path=ckpt_path, global_step=8, current_epoch=2)
    trainer.call("setup", "fit")
    new.load_state_dict(old.state_dict())
    trainer.call("on_train_start")
    return trainer


def test_a_resumed_run_goes_on_with_the_best(tmp_path: Path) -> None:
    """The best of before count, and are removed when they are beaten, except the one that training resumed
    from."""
    old = ModelCheckpoint(tmp_path, monitor="v", save_top_k=2)
    fit(tmp_path, [2, 3], old)
    new = ModelCheckpoint(tmp_path, monitor="v", save_top_k=2)
    trainer = resume(tmp_path, old, new, str(tmp_path / "epoch=1-step=8.ckpt"))
    for value in (5, 1, 0):
        trainer.epoch(v=value)
    assert set(steps_saved(tmp_path)) == {
        "epoch=1-step=8.ckpt",
        "epoch=3-step=16.ckpt",
        "epoch=4-step=20.ckpt",
    }
    assert new.best_model_score == 0


def test_a_resumed_run_moves_the_name_of_the_last(tmp_path: Path) -> None:
    """Resuming from last.ckpt does not leave a last-v1.ckpt beside it."""
    old = ModelCheckpoint(tmp_path, save_last=True)
    fit(tmp_path, [2, 3], old)
    trainer = resume(tmp_path, old, ModelCheckpoint(tmp_path, save_last=True), str(tmp_path / "last.ckpt"))
    trainer.epoch(v=1)
    assert steps_saved(tmp_path) == {"epoch=2-step=12.ckpt": 12, "last.ckpt": 12}


def test_the_file_resumed_from_is_not_replaced_by_name(tmp_path: Path) -> None:
    """A new checkpoint of the same name as the one that training resumed from gets a version."""
    old = ModelCheckpoint(tmp_path, filename="best")
    fit(tmp_path, [2, 3], old)
    trainer = resume(tmp_path, old, ModelCheckpoint(tmp_path, filename="best"), str(tmp_path / "best.ckpt"))
    trainer.epoch(v=1)
    assert steps_saved(tmp_path) == {"best.ckpt": 8, "best-v1.ckpt": 12}


def test_what_was_saved_at_the_resumed_step_is_not_saved_again(tmp_path: Path) -> None:
    """A run that was resumed saves at the same steps as one that never stopped."""
    old = ModelCheckpoint(tmp_path)
    fit(tmp_path, [2, 3], old)
    trainer = resume(tmp_path, old, ModelCheckpoint(tmp_path), str(tmp_path / "epoch=1-step=8.ckpt"))
    trainer.call("on_train_epoch_end")
    assert trainer.saved == []


def test_another_directory_keeps_the_old_files(tmp_path: Path) -> None:
    """Where saves now go elsewhere, only the best path is taken over, with a warning, and nothing is
    removed."""
    old = ModelCheckpoint(tmp_path / "old", monitor="v")
    fit(tmp_path, [2, 3], old)
    new = ModelCheckpoint(tmp_path / "new", monitor="v")
    with pytest.warns(UserWarning, match=r"new.*old"):
        trainer = resume(tmp_path, old, new, old.best_model_path)
    assert new.best_model_path == old.best_model_path
    trainer.epoch(v=9)
    assert new.best_model_score == 9
    assert set(steps_saved(tmp_path / "old")) == {"epoch=0-step=4.ckpt"}


def test_the_state_in_a_checkpoint_tells_of_the_checkpoint_itself(tmp_path: Path) -> None:
    """What is saved knows its own path as best and as last, so resuming from it goes on rightly."""
    states: list[dict[str, Any]] = []

    class Trainer(FakeTrainer):
        def save_checkpoint(self, path: str, weights_only: bool = False, **options: Any) -> None:
            states.append(self.callbacks[0].state_dict())
            super().save_checkpoint(path, weights_only, **options)

    trainer = Trainer(tmp_path, ModelCheckpoint(tmp_path, monitor="v", save_last=True))
    trainer.start()
    trainer.epoch(v=1)
    (state,) = states
    assert state["best_model_path"] == str(tmp_path / "epoch=0-step=4.ckpt")
    assert state["last_model_path"] == str(tmp_path / "last.ckpt")
    assert state["last_saved_step"] == 4


def test_the_state_is_plain(tmp_path: Path) -> None:
    """The state holds only what torch loads safely."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", save_top_k=2, train_time_interval=None)
    fit(tmp_path, [2, 3], checkpoint)
    path = tmp_path / "state.pt"
    torch.save(checkpoint.state_dict(), path)
    assert torch.load(path, weights_only=True) == checkpoint.state_dict()


def test_the_best_can_be_written_as_yaml(tmp_path: Path) -> None:
    """to_yaml writes paths and scores, by default beside the checkpoints."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", save_top_k=2)
    fit(tmp_path, [1, 2], checkpoint)
    checkpoint.to_yaml()
    checkpoint.to_yaml(tmp_path / "own.yaml")
    for name in ("best_k_models.yaml", "own.yaml"):
        found = yaml.safe_load((tmp_path / name).read_text())
        assert found == {str(tmp_path / f"epoch={n}-step={4 * n + 4}.ckpt"): float(n + 1) for n in range(2)}


# ---------------------------------------------------------------- saves that are on their way


class Behind(FakeTrainer):
    """Whose saves are complete only when `write` is called, and fail with `error`."""

    def __init__(self, root: Path, *callbacks: Any, **changes: Any) -> None:
        super().__init__(root, *callbacks, **changes)
        self.error: BaseException | None = None

    def save_checkpoint(self, path: str, weights_only: bool = False, **options: Any) -> Any:
        if self.error is None:
            super().save_checkpoint(path, weights_only, **options)
        return SimpleNamespace(path=path, error=self.error, wait=lambda: None)


def full() -> BaseException:
    """A full disk."""
    return failure("x.ckpt", OSError(28, "full"))


def test_a_save_that_failed_behind_training_is_taken_back(tmp_path: Path) -> None:
    """At the next save, or at the end, the attributes tell of what is there; another failure is raised."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", save_last=True, save_top_k=2)
    trainer = Behind(tmp_path, checkpoint)
    trainer.start()
    trainer.epoch(v=3)
    trainer.error = full()
    trainer.epoch(v=1)
    trainer.error = None
    trainer.epoch(v=2)
    trainer.end()
    assert set(map(float, checkpoint.best_k_models.values())) == {2.0, 3.0}
    assert checkpoint.best_model_score == 2.0
    assert all(Path(path).exists() for path in (*checkpoint.best_k_models, checkpoint.last_model_path))
    trainer.error = failure("x.ckpt", OSError(13, "no"))
    trainer.epoch(v=0)
    with pytest.raises(OSError, match="Permission denied"):
        trainer.end()
    assert checkpoint.best_model_score == 2.0


class Ranks:
    """Gives a rank the values of the others, as they are listed."""

    def __init__(self, *others: Any) -> None:
        self.others = list(others)

    def gather(self, value: Any) -> list[Any]:
        return [*self.others, value]


def test_all_ranks_take_back_what_failed_on_one(tmp_path: Path) -> None:
    """A rank that wrote nothing, and one that came in another's place, note what the others do."""
    states = []
    for replaced in (False, True):
        checkpoint = ModelCheckpoint(tmp_path, monitor="v")
        trainer = Behind(tmp_path, checkpoint, world_size=2, global_rank=1, strategy=None)
        trainer.start()
        trainer.epoch(v=3)
        trainer.strategy = Ranks((None, None))
        trainer.epoch(v=2)
        before = checkpoint._before
        if replaced:
            state = checkpoint.state_dict()
            checkpoint = ModelCheckpoint(tmp_path, monitor="v")
            trainer.callbacks = [checkpoint]
            trainer.start()
            checkpoint.load_state_dict(state)
            assert checkpoint._is_behind
        trainer.strategy = Ranks((full(), before))
        checkpoint._finish(trainer)  # type: ignore[arg-type]
        assert checkpoint.best_model_score == 3.0
        states.append({**checkpoint.state_dict(), "last_saved_step": 0})
    assert states[0] == states[1]


def test_a_checkpoint_that_was_lost_with_its_process_is_forgotten(tmp_path: Path) -> None:
    """A run that goes on from another callback's checkpoint knows only of files that are there."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", save_top_k=2)
    trainer = Behind(tmp_path, checkpoint)
    trainer.start()
    trainer.epoch(v=3)
    trainer.epoch(v=2)
    state = checkpoint.state_dict()
    assert state["is_behind"]
    Path(checkpoint.best_model_path).unlink()
    again = ModelCheckpoint(tmp_path, monitor="v", save_top_k=2)
    trainer = Behind(tmp_path, again)
    trainer.start()
    again.load_state_dict(state)
    trainer.global_step = 12
    with pytest.warns(UserWarning, match="the process that wrote it was lost. The one before it stays"):
        trainer.epoch(v=4)
    trainer.end()
    assert sorted(map(float, again.best_k_models.values())) == [3.0, 4.0]
    assert all(Path(path).exists() for path in again.best_k_models)
