"""What is read from the files of loggers, whole or cut short, and what of it is drawn."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.loggers import CSVLogger, TensorBoardLogger
from orchestrator.report import charts
from orchestrator.report.curves import read_curves, read_scalars, thinned

NUMBERS = st.floats(-1e9, 1e9)


def test_both_loggers_files_give_the_same_curves(tmp_path: Path) -> None:
    """Names, steps and values; the epoch's number is no curve."""
    for logger in (CSVLogger(tmp_path, name="a"), TensorBoardLogger(tmp_path, name="b")):
        for step in (0, 5, 10):
            logger.log_metrics({"loss": 1.0 / (step + 1), "epoch": 0.0}, step)
        logger.log_metrics({"val": 0.5, "bad": float("nan")}, 10)
        logger.finalize("success")
    one, other = read_curves(tmp_path / "a" / "version_0"), read_curves(tmp_path / "b" / "version_0")
    assert one["val"] == other["val"] == [(10, 0.5)]
    assert [step for step, _ in one["loss"]] == [step for step, _ in other["loss"]] == [0, 5, 10]
    assert one.keys() == other.keys() == {"loss", "val"}
    assert max(abs(a[1] - b[1]) for a, b in zip(one["loss"], other["loss"], strict=True)) < 1e-7


def test_a_file_that_was_cut_short_gives_what_is_whole(tmp_path: Path) -> None:
    """At whatever byte it ends."""
    logger = TensorBoardLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"loss": float(step)}, step)
    logger.finalize("success")
    (path,) = (tmp_path / "lightning_logs" / "version_0").glob("events*")
    data = path.read_bytes()
    whole = [item for item in read_scalars(data) if item[0] == "loss"]
    assert whole == [("loss", step, float(step)) for step in range(3)]
    for end in range(0, len(data), 7):
        found = [item for item in read_scalars(data[:end]) if item[0] == "loss"]
        assert found == whole[: len(found)]


def test_without_files_there_are_no_curves(tmp_path: Path) -> None:
    """And rows without a step are no points."""
    assert read_curves(tmp_path) == {}
    (tmp_path / "metrics.csv").write_text("step,loss\n,1.0\n3,x\n4,\n5,2.0\n6")
    assert read_curves(tmp_path) == {"loss": [(5, 2.0)]}


@given(st.lists(NUMBERS, min_size=1, max_size=3000), st.integers(10, 500))
def test_thinning_keeps_spikes_and_ends(values: list[float], most: int) -> None:
    """The first and last point, the least and the greatest value stay, in the order of steps."""
    curve = list(enumerate(values))
    kept = thinned(curve, most)
    assert len(kept) <= most + 4
    assert kept == sorted(kept) and set(kept) <= set(curve)
    assert kept[0] == curve[0] and kept[-1] == curve[-1]
    found = [value for _, value in kept]
    assert (min(found), max(found)) == (min(values), max(values))


@given(NUMBERS, NUMBERS)
def test_ticks_are_few_and_within(one: float, other: float) -> None:
    """Whatever the range, there are some, and none outside."""
    low, high = min(one, other), max(one, other)
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 8 or high - low < 1e-9 * max(abs(low), abs(high))
    slack = 1e-6 * max(1.0, high - low)
    assert all(low - slack <= value <= high + slack for value in found)


@given(st.lists(NUMBERS, max_size=20))
def test_every_curve_is_drawn_within_its_frame(values: list[float]) -> None:
    """Flat, single and empty ones too."""
    drawn = charts.lines("<loss>", [("a", list(enumerate(values)))])
    assert (drawn == "") == (not values)
    assert "<loss>" not in drawn and "nan" not in drawn
