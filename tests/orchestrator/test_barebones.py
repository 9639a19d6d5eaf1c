"""What a bare trainer leaves out, refuses, and costs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint, ModelSummary, RichProgressBar
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import CSVLogger
from tests.orchestrator.test_budget import Line, Logs, calls_per_step, data, fit
from tests.orchestrator.tiny import Tiny, Validated, assert_equal_weights, loader, quiet_trainer


def bare(**arguments: Any) -> pl.Trainer:
    """A bare trainer of one epoch."""
    return pl.Trainer(barebones=True, accelerator="cpu", devices=1, **{"max_epochs": 1, **arguments})


def test_everything_around_training_is_off(tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """No callbacks, loggers, sanity check, display or files; the weights are those of any trainer."""
    trainer = bare(default_root_dir=tmp_path)
    assert (trainer.callbacks, trainer.loggers) == ([], [])
    assert trainer.settings.num_sanity_val_steps == 0
    one, other = Tiny(), Tiny()
    trainer.fit(one, loader(16))
    quiet_trainer().fit(other, loader(16))
    assert_equal_weights(one, other)
    assert list(tmp_path.iterdir()) == []
    assert "Epoch" not in capfd.readouterr().err


def test_logging_warns_once_and_does_nothing() -> None:
    """self.log in any step is dropped, with one warning a call of the trainer."""
    trainer = bare()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Logs(2), data(4))
    texts = [str(item.message) for item in caught if "self.log" in str(item.message)]
    assert texts == ["self.log('metric_0', ...) does nothing under Trainer(barebones=True)."]
    assert trainer.callback_metrics == {}
    with pytest.warns(UserWarning, match="does nothing under"):
        assert bare().validate(Validated(), loader(8), verbose=False) == [{}]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"enable_checkpointing": True}, "enable_checkpointing=True"),
        ({"enable_progress_bar": True}, "enable_progress_bar=True"),
        ({"enable_model_summary": True}, "enable_model_summary=True"),
        ({"num_sanity_val_steps": 2}, "num_sanity_val_steps=2"),
        ({"fast_dev_run": True}, "fast_dev_run=True"),
        ({"log_every_n_steps": 5}, "log_every_n_steps=5"),
        ({"logger": True}, "logger=True"),
        ({"profiler": "simple"}, "profiler='simple'"),
    ],
)
def test_what_contradicts_it_is_refused(arguments: dict[str, Any], named: str) -> None:
    """Asking for something that a bare trainer leaves out is an error that names it."""
    with pytest.raises(MisconfigurationError, match=rf"Trainer\(barebones=True, {named}\)"):
        bare(**arguments)


@pytest.mark.parametrize("kind", [ModelCheckpoint, ModelSummary, RichProgressBar])
def test_callbacks_that_contradict_it_are_refused(kind: Any) -> None:
    """Callbacks of what is left out are named; others are the user's affair."""
    with pytest.raises(MisconfigurationError, match=rf"Trainer\(barebones=True\) has {kind.__name__} among"):
        bare(callbacks=kind())
    own = pl.Callback()
    assert bare(callbacks=own).callbacks == [own]


def test_several_contradictions_are_named_together(tmp_path: Any) -> None:
    """All settings that contradict it stand in one message."""
    with pytest.raises(MisconfigurationError, match="enable_checkpointing=True, fast_dev_run=3"):
        bare(enable_checkpointing=True, fast_dev_run=3)
    with pytest.raises(MisconfigurationError, match="barebones logs nothing"):
        bare(logger=CSVLogger(tmp_path))


@pytest.mark.filterwarnings("ignore:self.log")
def test_a_step_costs_least() -> None:
    """A step makes no call more than that of a quiet trainer, and each self.log two instead of twenty."""
    quiet = calls_per_step(lambda steps: fit(Line(), steps))
    least = calls_per_step(lambda steps: bare().fit(Line(), data(steps)))
    logs = calls_per_step(lambda steps: bare().fit(Logs(5), data(steps)))
    full = calls_per_step(lambda steps: fit(Logs(5), steps))
    assert least <= quiet + 1  # of the log point every 50 steps
    assert logs - least <= 5 * 3
    assert logs < full


@pytest.mark.parametrize(("wanted", "sent"), [(True, 1), (False, 0)])
def test_hyperparameters_go_to_loggers_if_wanted(wanted: bool, sent: int, tmp_path: Any) -> None:
    """enable_autolog_hparams=False keeps the module's hyperparameters from the loggers."""

    class Named(Tiny):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Counts(CSVLogger):
        got = 0

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            self.got += 1

    logger = Counts(tmp_path)
    quiet_trainer(logger=logger, enable_autolog_hparams=wanted).fit(Named(), loader(8))
    assert logger.got == sent
