"""How a run is doing, as the display is told: samples, MFU, waiting for data, slow ranks."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.callbacks import ThroughputMonitor
from orchestrator.engine import Engine
from orchestrator.progress import Progress, ProgressRecord, flow, troubles
from orchestrator.vitals import SLOW, slowest
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=9))
def test_a_rank_is_slow_only_beside_the_others(seconds: list[float]) -> None:
    """It is the slowest, by its share or more; and nobody is where all are alike."""
    found = slowest(seconds)
    if found is not None:
        rank, times = found
        assert seconds[rank] == max(seconds) and times >= SLOW - 0.01
    assert slowest([seconds[0]] * len(seconds)) is None


def test_nobody_is_called_slow_where_somebody_is_not_known() -> None:
    """Nor alone, nor for less than a millisecond."""
    assert slowest([0.1]) is None and slowest([0.1, 0.0]) is None and slowest([0.0001, 0.0009]) is None


def records_of(module: Any, *callbacks: Any, monkeypatch: pytest.MonkeyPatch) -> list[ProgressRecord]:
    """Train, and return the progress records of training."""
    found: list[ProgressRecord] = []

    class Shown(Progress):
        def update(self, record: ProgressRecord) -> None:
            found.append(record)

    monkeypatch.setattr(Engine, "progress_interval_s", 0.0)
    monkeypatch.setattr("orchestrator.trainer_calls.Progress", lambda bar: Shown(io.StringIO()))
    trainer = quiet_trainer(*callbacks, enable_progress_bar=True, max_epochs=1)
    trainer.fit(module, loader(10, batch_size=4))
    return [item for item in found if item.stage == "train"]


def test_the_display_is_told_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the batches have, the last one too; without operations there is no MFU."""
    records = records_of(Tiny(), monkeypatch=monkeypatch)
    assert {item.batch: item.samples for item in records} == {1: 4, 2: 8, 3: 10}
    assert all(item.mfu_a_sample is None and item.slow is None and item.recovered == 0 for item in records)


@pytest.mark.parametrize(("name", "value"), [("flops_per_sample", 5e6), ("flops_per_batch", 2e7)])
def test_a_module_that_knows_its_operations_has_an_mfu(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a ThroughputMonitor was told that the device can do."""
    module = Tiny()
    setattr(module, name, value)
    monitor = ThroughputMonitor(batch_size_fn=len, available_flops=1e9)
    records = records_of(module, monitor, monkeypatch=monkeypatch)
    assert records[0].mfu_a_sample == pytest.approx(0.005)


def test_what_is_known_is_told_in_words() -> None:
    """And what is not, or is well, is left out."""
    well = ProgressRecord(stage="train", epoch=0, batch=10, samples=20)
    assert flow(well, 0.5) == "1 samples/s" and troubles(well) == ""
    assert flow(ProgressRecord(stage="train", epoch=0, batch=10), 3.0) == ""
    bad = ProgressRecord(stage="train", epoch=0, batch=10, waits=0.049, recovered=2)
    assert troubles(bad) == "2 workers lost and made good"
