"""When the module's summary is shown, and by whom."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import ModelSummary, RichModelSummary
from orchestrator.errors import MisconfigurationError
from orchestrator.summary import Summary
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer


def fit_and_read(caplog: pytest.LogCaptureFixture, *callbacks: pl.Callback, **arguments: Any) -> list[str]:
    """Train a step, and return what was said."""
    with caplog.at_level(logging.INFO, "orchestrator"):
        quiet_trainer(*callbacks, **{"enable_model_summary": None, **arguments}).fit(Tiny(), loader(4))
    return [record.getMessage() for record in caplog.records]


def test_fit_shows_one_table(caplog: pytest.LogCaptureFixture) -> None:
    """By default fit shows a plain table of the module's layers, through the log, once."""
    said = fit_and_read(caplog)
    assert sum("49 trainable + 0 frozen = 49 parameters" in text for text in said) == 1
    assert any(text.startswith("Name  Type        Params  Mode\n") for text in said)


def test_it_can_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """enable_model_summary=False and a depth of 0 show nothing."""
    assert not any("trainable" in text for text in fit_and_read(caplog, enable_model_summary=False))
    assert not any("trainable" in text for text in fit_and_read(caplog, ModelSummary(max_depth=0)))


def test_the_rich_one_replaces_the_plain_one(caplog: pytest.LogCaptureFixture) -> None:
    """A RichModelSummary among the callbacks is the only summary, and draws a table with lines."""
    said = fit_and_read(caplog, RichModelSummary(max_depth=-1))
    tables = [text for text in said if "trainable" in text]
    assert len(tables) == 1
    assert "│ net.0 │ Linear     │" in tables[0]
    assert "\x1b" not in tables[0]


def test_a_subclass_may_show_something_else(caplog: pytest.LogCaptureFixture) -> None:
    """What render returns is what is shown."""

    class Short(ModelSummary):
        def render(self, summary: Summary) -> str:
            return f"{summary.total_parameters} numbers"

    assert "49 numbers" in fit_and_read(caplog, Short())


def test_contradictions_are_refused() -> None:
    """A summary that was turned off and given at once, two of them, and an impossible depth are errors."""
    with pytest.raises(MisconfigurationError, match="=False\\) has ModelSummary among"):
        quiet_trainer(ModelSummary())
    with pytest.raises(MisconfigurationError, match="has 2 of a kind: ModelSummary, RichModelSummary"):
        quiet_trainer(ModelSummary(), RichModelSummary(), enable_model_summary=None)
    with pytest.raises(MisconfigurationError, match=r"RichModelSummary\(max_depth=-3\)"):
        RichModelSummary(max_depth=-3)


@pytest.mark.ray
def test_a_group_shows_it_once(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    """On a group rank 0's table comes to the driver's log, and no other rank's."""
    trainer = group_trainer(tmp_path, max_epochs=1, enable_model_summary=True)
    with caplog.at_level(logging.INFO, "orchestrator"):
        trainer.fit(Net(), group_loader(16))
    assert sum("trainable" in record.getMessage() for record in caplog.records) == 1
