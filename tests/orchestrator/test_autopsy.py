"""A fit on a group that stands still: it is said which rank and line the others wait for, and it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import orchestrator as pl
from tests.orchestrator.tiny import Tiny, loader, loss_of

pytestmark = pytest.mark.ray


class Stuck(Tiny):
    """Rank 1 waits in the middle of its second step until a file is there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        while self.global_rank == 1 and batch_idx == 1 and not self.path.exists():
            time.sleep(0.5)
        return loss_of(self.net, batch)


class _Release(logging.Handler):
    """Makes the file as soon as an autopsy is logged, and keeps what is logged."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.texts.append(text)
        if text.startswith("Autopsy") and "training_step" in text:
            self.path.touch()


@pytest.fixture
def release(tmp_path: Path) -> Iterator[_Release]:
    log, handler = logging.getLogger("orchestrator"), _Release(tmp_path / "go on")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def test_a_rank_that_is_stuck_is_named_and_training_goes_on(release: _Release) -> None:
    """The report names the rank that the others wait for and its line; nothing is ended, so the fit finishes
    once the rank goes on, and nothing else is reported.
    """
    module = Stuck(release.path)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        resources_per_worker={"CPU": 0.5},
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        autopsy_after_s=1.0,
        start_timeout_s=200.0,
    )
    trainer.fit(module, loader(32))
    assert trainer.global_step == 4
    (report,) = [text for text in release.texts if text.startswith("Autopsy")]
    assert "The others wait for rank 1 on node 127.0.0.1 (pid " in report
    line = next(
        number
        for number, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if "sleep(0.5)" in text
    )
    assert f"test_autopsy.py:{line} in training_step: time.sleep(0.5)" in report
    assert "waits in backward, where gradients are averaged" in report
