"""Which bar is drawn, what stands beside it, and how users change both."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import ProgressBar, RichProgressBar, RichProgressBarTheme, TQDMProgressBar
from orchestrator.engine import Engine
from orchestrator.errors import MisconfigurationError
from orchestrator.job import Job
from orchestrator.loggers import CSVLogger
from orchestrator.place import Place
from orchestrator.progress import Progress, ProgressRecord
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, loader, loss_of, quiet_trainer

ON: dict[str, Any] = {"enable_progress_bar": None}


class Logs(Tiny):
    """Logs two metrics, one of them for the bar."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = loss_of(self.net, batch)
        self.log("loss", loss, prog_bar=True)
        self.log("hidden", loss)
        return loss


def records(trainer: pl.Trainer) -> list[ProgressRecord]:
    """Train an epoch of four steps, and return what the display was sent."""
    shown: list[ProgressRecord] = []
    job = Job(fn="fit", module=Logs(), loaders={"train": loader(16)})
    engine = Engine(trainer, job, Place(), shown.append)
    engine.progress_interval_s = 0.0
    engine.run()
    return shown


def test_the_trainer_has_a_bar_unless_none_is_wanted() -> None:
    """Without a choice there is a RichProgressBar; the user's own replaces it; False leaves it out."""
    own = TQDMProgressBar()
    assert type(quiet_trainer(**ON).progress_bar_callback) is RichProgressBar
    assert quiet_trainer(own, **ON).progress_bar_callback is own
    assert quiet_trainer().progress_bar_callback is None


def test_contradictions_are_refused() -> None:
    """A bar that was turned off and given at once, and two bars, are errors that name them."""
    with pytest.raises(MisconfigurationError, match="=False\\) has TQDMProgressBar among"):
        quiet_trainer(TQDMProgressBar())
    with pytest.raises(MisconfigurationError, match="has 2 of a kind: RichProgressBar, TQDMProgressBar"):
        quiet_trainer(RichProgressBar(), TQDMProgressBar(), **ON)


@pytest.mark.parametrize("kind", [RichProgressBar, TQDMProgressBar])
@pytest.mark.parametrize("rate", [-1, 1.5, True, "2"])
def test_a_rate_is_a_number_of_batches(kind: Any, rate: Any) -> None:
    """refresh_rate is a whole number from 0."""
    with pytest.raises(MisconfigurationError, match=rf"{kind.__name__}\(refresh_rate=.*number of batches"):
        kind(refresh_rate=rate)


def test_themes_are_checked_at_once() -> None:
    """A style or a format that is none, and something that is no theme, are refused when the bar is made."""
    with pytest.raises(MisconfigurationError, match=r"RichProgressBarTheme\(time='no such colour'\)"):
        RichProgressBar(theme=RichProgressBarTheme(time="no such colour"))
    with pytest.raises(MisconfigurationError, match=r"metrics_format='x y'.*Use a format such as"):
        RichProgressBar(theme=RichProgressBarTheme(metrics_format="x y"))
    with pytest.raises(MisconfigurationError, match="Use a RichProgressBarTheme"):
        RichProgressBar(theme="blue")  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationError, match=r"TQDMProgressBar\(process_position=-1\)"):
        TQDMProgressBar(process_position=-1)


def test_the_version_and_the_chosen_metrics_are_shown(tmp_path: Any) -> None:
    """Beside the bar stand the first logger's version and what was logged with prog_bar=True."""
    trainer = quiet_trainer(logger=CSVLogger(tmp_path), log_every_n_steps=1, **ON)
    trainer.loggers[0].claim()
    last = records(trainer)[-1]
    assert list(last.metrics) == ["v_num", "loss"]
    assert last.metrics["v_num"] == 0


def test_a_subclass_chooses_what_is_shown() -> None:
    """get_metrics may drop and add: numbers, tensors and words come through as plain values."""

    class Own(RichProgressBar):
        def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
            shown = super().get_metrics(trainer, pl_module)
            del shown["loss"]
            return {**shown, "step": trainer.global_step, "phase": "warm", "bias": pl_module.net[3].bias[0]}

    shown = records(quiet_trainer(Own(), log_every_n_steps=1, **ON))[-1].metrics
    assert (shown["step"], shown["phase"]) == (4, "warm")
    assert type(shown["bias"]) is float


def test_titles_can_be_changed() -> None:
    """Descriptions that a subclass overrides are the titles, in plain lines too."""

    class French(RichProgressBar):
        @property
        def train_description(self) -> str:
            return "Époque"

    text = io.StringIO()
    progress = Progress(text, bar=French())
    progress.update(ProgressRecord(stage="train", epoch=1, max_epochs=3, batch=4, done=True))
    assert text.getvalue().startswith("Époque 1/2: 4 batches")


def test_the_rate_leaves_batches_out() -> None:
    """Records closer than refresh_rate batches are not drawn; the last of a stage always is."""
    drawn: list[int] = []

    class Recording(RichProgressBar):
        def display(self, stream: Any, now_s: Any) -> Any:
            class Display:
                def update(self, record: ProgressRecord) -> None:
                    drawn.append(record.batch)

            return Display()

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        progress = Progress(Terminal(), bar=Recording(refresh_rate=3))
        for batch in range(1, 9):
            progress.update(ProgressRecord(stage="train", epoch=0, batch=batch))
        progress.update(ProgressRecord(stage="train", epoch=0, batch=8, done=True))
        progress.update(ProgressRecord(stage="train", epoch=1, batch=1))
    assert drawn == [1, 4, 7, 8, 1]


def test_a_bar_that_is_off_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """refresh_rate=0 and disable() leave even the plain lines out; enable() brings them back."""
    bar = RichProgressBar(refresh_rate=0)
    trainer = quiet_trainer(bar, **ON)
    trainer.fit(Tiny(), loader(8))
    assert "Epoch" not in capsys.readouterr().err
    bar.refresh_rate = 1
    bar.disable()
    trainer = quiet_trainer(bar, **ON)
    trainer.fit(Tiny(), loader(8))
    assert "Epoch" not in capsys.readouterr().err
    bar.enable()
    quiet_trainer(bar, **ON).fit(Tiny(), loader(8))
    assert "Epoch 0/0: 2/2 batches" in capsys.readouterr().err


def test_a_bar_of_ones_own_draws_in_hooks(capsys: pytest.CaptureFixture[str]) -> None:
    """A subclass of ProgressBar gets hooks as any callback, knows the totals, and no display is made."""
    seen: list[Any] = []

    class Own(ProgressBar):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            seen.append((self.total_train_batches, self.trainer is trainer, self.is_enabled))

    quiet_trainer(Own(), **ON).fit(Tiny(), loader(8))
    assert seen == [(2, True, True)] * 2
    assert "Epoch" not in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="read before the trainer has run"):
        _ = Own().trainer


def test_trainer_print_goes_through_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """trainer.print asks the bar to print, so that it is not damaged."""
    asked: list[Any] = []

    class Own(RichProgressBar):
        def print(self, *args: Any, **kwargs: Any) -> None:
            asked.append(args)

    quiet_trainer(Own(), **ON).print("a", "b")
    quiet_trainer().print("without")
    assert asked == [("a", "b")]
    assert capsys.readouterr().out == "without\n"


def test_without_tqdm_richs_bars_are_drawn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where tqdm is missing, TQDMProgressBar draws the Trainer's own bars and names the extra."""
    from orchestrator.progress_bars import LiveBars

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, "orchestrator"):
        display = TQDMProgressBar().display(io.StringIO(), lambda: 0.0)
    assert type(display) is LiveBars
    assert "pip install 'ray-training-orchestrator[tqdm]'" in caplog.text


class Phase(RichProgressBar):
    """Shows a word and a number of the module's."""

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        return {**super().get_metrics(trainer, pl_module), "phase": "warm", "width": pl_module.hparams.width}


@pytest.mark.ray
def test_on_a_group_rank_0_says_what_is_shown(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A subclass's metrics are asked for where training runs, and drawn by the driver; it stays usable."""
    bar = Phase()
    trainer = group_trainer(tmp_path, callbacks=[bar], enable_progress_bar=None, max_epochs=1)
    for _ in range(2):
        trainer.validate(Net(), group_loader(32), verbose=False)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Validating")]
    assert len(lines) == 2
    assert all("phase warm, width 16" in line for line in lines)
    assert bar.is_enabled
