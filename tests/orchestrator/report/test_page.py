"""The page about a run: what stands in it, that it needs nothing else, and that nothing in it is markup by
accident."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.report.page import MOST_EVENTS, Told, make_page

GOODPUT = {"start": 1.0, "compute": 7.0, "data": 1.0, "evaluation": 1.0}


def make_run(folder: Path, lr: float = 0.1, epochs: int = 3, **more: Any) -> Path:
    """Files as a run leaves them."""
    folder.mkdir(parents=True)
    call = {
        "fn": "fit",
        "started": 1e9,
        "ended": 1e9 + 10,
        "outcome": "finished",
        "epochs": epochs,
        "steps": 10 * epochs,
        "metrics": {"val_loss": lr},
        "goodput": GOODPUT,
        **more,
    }
    content = {
        "format": 1,
        "name": f"logs/{folder.name}",
        "hyperparameters": {"lr": lr, "note": "<script>alert(1)</script>"},
        "environment": {"versions": {"torch": "2.13"}},
        "calls": [call],
    }
    (folder / "run.json").write_text(json.dumps(content))
    events: list[dict[str, Any]] = [{"event": "start", "at": 1e9}, {"event": "train", "at": 1e9 + 1}]
    for epoch in range(epochs):
        step = 10 * (epoch + 1)
        place = {"at": 1e9 + 2 + epoch, "epoch": epoch, "step": step}
        events.append({"event": "epoch", **place, "samples": 320, "train_s": 2.0 * (epoch + 1)})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    rows = "".join(f"{step},{lr * 10 / (step + 1)}\n" for step in range(0, 10 * epochs, 5))
    (folder / "metrics.csv").write_text("step,train_loss\n" + rows)
    return folder


class Checker(html.parser.HTMLParser):
    """Finds tags that are not closed, and addresses of something elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> str:
    """The page, which is well-formed and needs nothing from elsewhere."""
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and checker.addresses == []
    assert "@import" not in page and "url(" not in page
    return page


def test_a_run_is_told(tmp_path: Path) -> None:
    """Curves, throughput, account, events, facts; what a user wrote is text, never markup."""
    page = checked(make_page(Told.read(make_run(tmp_path / "version_0"))))
    for title in ("Curves", "Where the time went", "Throughput", "Events", "Run"):
        assert f"<h2>{title}</h2>" in page
    assert "Goodput 70%: 7.0 s of 10.0 s" in page
    assert page.count("<polyline") == 2 and "train_loss" in page
    assert "<dt>samples / s</dt><dd>160</dd>" in page
    assert "alert(1)" in page and "<script>alert" not in page
    assert "Differences" not in page


def test_what_the_ranks_printed_is_there(tmp_path: Path) -> None:
    """The end of each rank's log, as text; without logs nothing is said."""
    folder = make_run(tmp_path / "version_0")
    assert "What the ranks printed" not in make_page(Told.read(folder))
    (folder / "ranks").mkdir()
    (folder / "ranks" / "rank1.log").write_text("<b>loss</b>\n")
    page = checked(make_page(Told.read(folder)))
    assert "Rank 1: the end of ranks/rank1.log" in page and "&lt;b&gt;loss&lt;/b&gt;" in page


def test_two_runs_are_compared(tmp_path: Path) -> None:
    """What they say differently is listed with both values, and their curves share a chart."""
    one = Told.read(make_run(tmp_path / "version_0"))
    page = checked(make_page(one, Told.read(make_run(tmp_path / "version_1", lr=0.2))))
    listed = page.partition("<h2>Differences</h2>")[2].partition("</section>")[0]
    assert re.findall(r"<tr><th>([\w.]+)</th>", listed) == ["hyperparameters.lr", "metrics.val_loss"]
    assert "<td>0.1</td><td>0.2</td>" in listed
    assert page.count('class="line run0"') == 2 and page.count('class="line run1"') == 2
    alike = checked(make_page(one, one))
    assert "<p>None.</p>" in alike


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """By as much of the paths as that needs, wherever a run is named; both have their tiles."""
    told = [
        Told.read(make_run(tmp_path / name / "logs" / "version_0", lr=lr))
        for name, lr in (("a", 1), ("b", 2))
    ]
    assert told[0].name == told[1].name == "logs/version_0"
    page = checked(make_page(*told))
    assert "<h1>a/logs/version_0 and b/logs/version_0</h1>" in page
    assert ">logs/version_0<" not in page and page.count('<dl class="tiles">') == 2


def test_where_a_run_failed_is_told(tmp_path: Path) -> None:
    """As its error had it."""
    where = "Raised on rank 1 of 2, epoch 0, step 5\n  File <train.py>"
    folder = make_run(tmp_path / "version_0", outcome="failed", error="ValueError: no", where=where)
    page = checked(make_page(Told.read(folder)))
    assert (
        "ValueError: no" in page and "Raised on rank 1 of 2, epoch 0, step 5\n  File &lt;train.py&gt;" in page
    )


def test_an_epoch_that_goes_on_has_its_own_throughput(tmp_path: Path) -> None:
    """What another call had trained of it is not counted."""
    folder = make_run(tmp_path / "version_0", epochs=1)
    lines = (
        (folder / "events.jsonl")
        .read_text()
        .replace('"samples": 320', '"samples": 320, "samples_before": 220')
    )
    (folder / "events.jsonl").write_text(lines)
    assert Told.read(folder).throughput() == [(10, 50.0)]


def test_a_run_that_goes_on_or_failed_early_has_a_page(tmp_path: Path) -> None:
    """Parts of which nothing is known are left out."""
    folder = make_run(tmp_path / "version_0", epochs=0, outcome="running", goodput=None)
    (folder / "metrics.csv").unlink()
    (folder / "events.jsonl").unlink()
    page = checked(make_page(Told.read(folder)))
    assert "running" in page and "<h2>Curves</h2>" not in page and "<h2>Events</h2>" not in page


def test_a_long_list_of_events_is_cut_in_the_middle(tmp_path: Path) -> None:
    """The first and the last stay."""
    page = make_page(Told.read(make_run(tmp_path / "version_0", epochs=MOST_EVENTS + 48)))
    assert "... 50 events ..." in page and page.count('<tr class="event-') == MOST_EVENTS


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the run's files, or where it is told to."""
    folder = make_run(tmp_path / "version_0")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"Wrote {folder / 'report.html'}.\n"
    assert main(["report", str(folder), str(folder), "--output", str(tmp_path / "both.html")]) == 0
    assert "<h2>Differences</h2>" in (tmp_path / "both.html").read_text()


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with status 2."""
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("orchestrator report: ") and "run.json" in said and said.count("\n") == 1
