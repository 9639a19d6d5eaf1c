"""Keeps the scripts small and in a folder of their own, without touching what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import legacy

LIMITS = {
    "LIMIT_TRAIN_BATCHES": "3",
    "LIMIT_VAL_BATCHES": "2",
    "LIMIT_TEST_BATCHES": "2",
    "ENABLE_PROGRESS_BAR": "false",
}


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A few batches of everything, by environment variables; what a script says itself wins."""
    for name, value in LIMITS.items():
        monkeypatch.setenv(f"ORCHESTRATOR_TRAINER_{name}", value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(legacy, "_told", set())
    yield
