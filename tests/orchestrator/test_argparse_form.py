"""The Trainer's arguments on a script's command line, as scripts from before Lightning 2 have them."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

import orchestrator as pl
from orchestrator import legacy


@pytest.fixture(autouse=True)
def _told_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """The notices are the matter of one test."""
    told = {"Trainer.add_argparse_args", "Trainer.from_argparse_args", "Trainer(gpus=...)"}
    monkeypatch.setattr(legacy, "_told", told)


def trainer_of(line: str, **given: Any) -> pl.Trainer:
    """The Trainer that a script makes of a command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=32)
    parser = pl.Trainer.add_argparse_args(parser)
    return pl.Trainer.from_argparse_args(parser.parse_args(line.split()), logger=False, **given)


def test_a_command_line_makes_a_trainer() -> None:
    """Options are read as their arguments' types; the script's own are passed over; keywords win."""
    trainer = trainer_of(
        "--accelerator cpu --devices 1 --max_epochs 3 --limit_val_batches 0.5 --limit_train_batches 4 "
        "--fast_dev_run --batch_size 8 --min_steps 7",
        min_steps=9,
    )
    assert (trainer.settings.max_epochs, trainer.fast_dev_run, trainer.min_steps) == (1, True, 9)
    trainer = trainer_of("--accelerator cpu --devices 1 --max_epochs 3 --limit_val_batches 0.5 --gpus 0")
    assert (trainer.max_epochs, trainer.limit_val_batches, trainer.limit_train_batches) == (3, 0.5, 1.0)


def test_what_was_left_out_is_the_default() -> None:
    """A line without options is a Trainer without arguments, and the environment still counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_TRAINER_MAX_EPOCHS", "5")
        assert trainer_of("--accelerator cpu --devices 1").max_epochs == 5


def test_a_text_of_another_type_is_the_parsers_error(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse says which option it was."""
    with pytest.raises(SystemExit):
        trainer_of("--max_epochs many")
    assert "argument --max_epochs" in capsys.readouterr().err


def test_a_notice_says_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two forms is told once."""
    monkeypatch.setattr(legacy, "_told", set())
    with pytest.warns(FutureWarning, match="add_argparse_args is an older form"):
        parser = pl.Trainer.add_argparse_args(argparse.ArgumentParser())
    with pytest.warns(FutureWarning, match="from_argparse_args is an older form"):
        pl.Trainer.from_argparse_args(parser.parse_args(["--accelerator", "cpu"]), devices=1)
