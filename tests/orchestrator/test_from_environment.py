"""Arguments of the Trainer from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.from_environment import parse
from tests.orchestrator.tiny import Tiny, loader


def trainer(**arguments: Any) -> pl.Trainer:
    return pl.Trainer(**{"logger": False, "accelerator": "cpu", **arguments})


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("int | None", "3", 3),
        ("int | None", "none", None),
        ("int", "-1", -1),
        ("int | float | None", "0.5", 0.5),
        ("int | float | None", "1", 1),
        ("float | None", "2", 2.0),
        ("bool", "true", True),
        ("bool", "0", False),
        ("bool | int", "0", 0),
        ("bool | None", "off", False),
        ("int | str", "auto", "auto"),
        ("int | str", "2", 2),
        ("int | str | list[int]", "[0, 1]", [0, 1]),
        ("str", " ddp", " ddp"),
        ("str | os.PathLike[str] | None", "/a/b", "/a/b"),
        ("bool | Logger | Sequence[Logger] | None", "false", False),
        ("dict[str, float] | None", '{"CPU": 0.5}', {"CPU": 0.5}),
    ],
)
def test_a_text_is_read_as_the_arguments_type(annotation: str, text: str, value: Any) -> None:
    """The narrowest type of the argument that fits wins."""
    found = parse("V", text, annotation)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text", "advice"),
    [
        ("int | None", "ten", "V='ten' is not of the type int or None"),
        ("bool", "2", r"V='2' is not of the type bool \(true or false\)"),
        ("dict[str, float] | None", "{CPU", r"is not of the type dict \(as JSON\) or None"),
        ("Callback | Sequence[Callback] | None", "x", "takes objects.*Give it in the script"),
        ("Any", "x", "takes objects"),
    ],
)
def test_a_text_of_no_such_type_is_refused(annotation: str, text: str, advice: str) -> None:
    """The error names the variable, its text, and what it could be."""
    with pytest.raises(pl.MisconfigurationError, match=advice):
        parse("V", text, annotation)


def test_a_variable_stands_for_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the script leaves out is taken from the environment."""
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_MAX_EPOCHS", "2")
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_LIMIT_TRAIN_BATCHES", "0.5")
    made = trainer(enable_checkpointing=False, enable_progress_bar=False)
    made.fit(Tiny(), loader(16))
    assert (made.max_epochs, made.global_step) == (2, 4)


def test_the_script_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument that the script gives is not looked up, be it the default, or an older form."""
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_MAX_STEPS", "7")
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_DEVICES", "2")
    made = trainer(max_steps=-1, devices=1)
    assert (made.max_steps, made.world_size) == (-1, 1)
    with pytest.warns(FutureWarning):
        assert trainer(num_processes=1).world_size == 1


def test_a_value_that_cannot_be_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A range or combination that the Trainer refuses is traced to the variable; others are not blamed."""
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_MAX_EPOCHS", "-5")
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_MIN_STEPS", "3")
    text = r"Trainer\(max_epochs=-5\)\..*\(ORCHESTRATOR_TRAINER_MAX_EPOCHS comes from the environment\.\)"
    with pytest.raises(pl.MisconfigurationError, match=text):
        trainer()


def test_a_variable_of_no_argument_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip of the pen is an error that suggests the right name."""
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_MAX_EPOCH", "2")
    with pytest.raises(
        pl.MisconfigurationError, match=r"ORCHESTRATOR_TRAINER_MAX_EPOCH is set.*'max_epochs'"
    ):
        trainer()


def test_objects_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument that takes objects only is refused by its variable."""
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_CALLBACKS", "EarlyStopping")
    with pytest.raises(pl.MisconfigurationError, match=r"ORCHESTRATOR_TRAINER_CALLBACKS='EarlyStopping'"):
        trainer()


@pytest.mark.ray
def test_workers_take_nothing_from_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variables are read once, by the process that makes the Trainer; a group has its settings."""
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_DEVICES", "2")
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_RESOURCES_PER_WORKER", '{"CPU": 0.5}')
    made = trainer(max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_MAX_EPOCHS", "9")
    made.fit(Tiny(), loader(16))
    assert (made.world_size, made.global_step, made.current_epoch) == (2, 2, 1)
