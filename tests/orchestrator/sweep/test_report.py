"""The page about a sweep stands alone and says what happened."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.charts import Scale, curves, parallel, scale_for, shades, timeline
from orchestrator.sweep.importance import importances
from orchestrator.sweep.records import EventFile, TrialRecord
from orchestrator.sweep.report import render, saved_share, write_report

VOID = {"meta", "br", "line", "polyline", "circle", "rect", "path"}


class Balance(HTMLParser):
    """Checks that tags close in order, and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def trial(number: int, losses: list[float], status: Any = "finished", **config: Any) -> TrialRecord:
    """A record of a trial with these losses."""
    reports = {index: {"loss": loss, "time_total_s": float(index)} for index, loss in enumerate(losses, 1)}
    record = TrialRecord(name=f"trial_{number:05d}", config=config, status=status, reports=reports)
    record.began, record.ended = float(number), number + 2.0
    return record


SOME = [
    trial(0, [3.0, 2.0, 1.0], lr=0.001, kind="<b>"),
    trial(1, [9.0], "stopped", lr=0.5, kind="x"),
    trial(2, [math.inf], "diverged", lr=5.0, kind="x"),
    TrialRecord(name="trial_00003", config={"lr": 1, "kind": None}, status="failed", error="V: <oops>"),
]


def test_the_page_is_whole_and_loads_nothing() -> None:
    """Its tags are balanced, no other file is named, and what users wrote is escaped."""
    page = render("mine & others", "loss", "min", SOME)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.loaded == []
    assert not re.search(r"https?://", page)
    assert "<b>" not in page
    assert "V: &lt;oops&gt;" in page


def test_the_page_says_what_was_best_and_what_was_saved() -> None:
    """In its first lines: best value with its configuration, and the share of reports not computed."""
    page = render("s", "loss", "min", SOME)
    assert "<dt>best loss</dt><dd>1</dd>" in page
    assert "trial 0, report 3: lr=0.001" in page
    assert "1 finished, 1 stopped, 1 diverged, 1 failed" in page
    assert saved_share(SOME) == pytest.approx(4 / 12)
    assert saved_share([]) == 0.0


def test_a_sweep_without_results_has_a_page_too() -> None:
    """It has no charts of values; why trials failed is said once for each reason."""
    assert re.findall("<h2>(.*?)</h2>", render("s", "loss", "min", [])) == []
    page = render("s", "loss", "min", [*SOME[2:], replace(SOME[3], name="trial_00004")])
    titles = ["Why trials failed", "Who was stopped when", "Trials"]
    assert re.findall("<h2>(.*?)</h2>", page) == titles
    told = page.partition(f"<h2>{titles[0]}</h2>")[2].partition("</section>")[0]
    assert told.count("V: &lt;oops&gt;") == 1 and "Trials 3, 4<" in told


def test_axes_by_the_logarithm_say_so() -> None:
    """Those of parameters, and that of the metric with its name."""
    assert ">lr (log)<" in parallel(SOME, ["lr", "kind"], "loss", "min")
    assert "<figcaption>loss</figcaption>" in curves(SOME, "loss", "min")
    assert "<figcaption>loss (log)</figcaption>" in curves([trial(0, [1e-3, 1.0])], "loss", "max")


def test_curves_mark_who_was_ended_early() -> None:
    """A line for each trial with finite values, a dot at the end of one that was stopped."""
    drawn = curves(SOME, "loss", "min")
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 1
    assert drawn.index('data-trial="1"') < drawn.index('data-trial="0"')  # the best is drawn last, on top


def test_parallel_coordinates_show_numbers_and_kinds() -> None:
    """An axis for each parameter that differs and one for the metric."""
    drawn = parallel(SOME, ["lr", "kind"], "loss", "min")
    assert drawn.count("<polyline") == 2
    assert drawn.count('class="axis"') == 3
    assert timeline(SOME, "loss", "min").count("<rect") == 4


def test_scales_go_by_the_logarithm_where_values_span_powers_of_ten() -> None:
    """Else they are straight; ticks are round and inside."""
    assert scale_for([1e-4, 1.0], 0, 100)(1e-2) == pytest.approx(50)
    assert Scale(low=0, high=10, start=0, end=100)(2.5) == 25
    assert Scale(low=0, high=9, start=0, end=1).ticks() == [0, 2, 4, 6, 8]
    assert scale_for([1e-4, 1.0], 0, 1).ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert Scale(low=2, high=2, start=0, end=10)(2) == 5


def test_the_best_trial_is_bluest() -> None:
    """By rank, in both modes, and where it is the only one; a trial without a value has no shade."""
    assert shades(SOME, "loss", "min") == {0: 1, 1: 0}
    assert shades(SOME, "loss", "max") == {0: 0, 1: 1}
    assert shades(SOME[1:], "loss", "min") == {1: 1}


def test_importance_finds_the_parameter_that_matters() -> None:
    """Whether it is a number or a name; one that does not matter gets next to nothing."""
    configs = [
        {"lr": index % 7 / 7, "kind": "ab"[index % 2], "noise": index * 37 % 11} for index in range(44)
    ]
    by_kind = importances(configs, [float(index % 2) for index in range(44)])
    assert next(iter(by_kind)) == "kind"
    assert by_kind["kind"] == pytest.approx(1.0)
    by_lr = importances(configs, [config["lr"] ** 2 for config in configs])  # type: ignore[operator]
    assert by_lr["lr"] > 0.8
    assert by_lr["noise"] < 0.2


def test_a_page_can_be_written_again_for_a_sweeps_folder_only(tmp_path: Path) -> None:
    """Of one that was broken off too; another folder is refused."""
    with pytest.raises(MisconfigurationError, match="is no sweep's directory"):
        write_report(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"metric": "loss", "mode": "min"}), encoding="utf-8")
    events = EventFile(str(tmp_path))
    events.started("trial_00000", {"lr": 1})
    events.reported("trial_00000", {"training_iteration": 1, "loss": 0.5})
    page = Path(write_report(tmp_path)).read_text(encoding="utf-8")
    assert "1 running" in page
