"""What each profiler measures and reports, on its own."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)


class Clock:
    """A clock that each reading moves by a second."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def told(profiler: Profiler) -> str:
    """What a profiler reports aloud."""
    said: list[str] = []
    profiler.describe(said.append)
    return "\n".join(said)


def test_simple_measures_durations() -> None:
    """Each run of an action is one duration; the report has means, counts, totals and shares."""
    profiler = SimpleProfiler(now_s=Clock())
    profiler.setup("fit")
    with profiler.profile("outer"), profiler.profile("inner"):
        pass
    with profiler.profile("inner"):
        pass
    profiler.teardown("fit")
    assert profiler.recorded_durations == {"inner": [1.0, 1.0], "outer": [3.0]}
    lines = told(profiler).splitlines()
    assert lines[0].startswith("Profile of fit: 7 s.")
    assert [line.split() for line in lines[3:]] == [
        ["outer", "3", "1", "3", "42.9", "%"],
        ["inner", "1", "2", "2", "28.6", "%"],
    ]
    profiler.extended = False
    assert told(profiler).splitlines()[-1].split() == ["inner", "1", "2"]


@pytest.mark.parametrize("kind", [SimpleProfiler, AdvancedProfiler])
def test_actions_begin_and_end_once(kind: Callable[[], Profiler]) -> None:
    """Ending what has not begun, and beginning again within, are errors that name the action."""
    profiler = kind()
    with pytest.raises(ValueError, match="'x' ended without having begun"):
        profiler.stop("x")
    with profiler.profile("x"), pytest.raises(ValueError, match="'x' began again before it ended"):
        profiler.start("x")
    profiler.teardown("")


def test_an_exception_ends_the_action() -> None:
    """An action that is left by an exception is measured, and the exception goes on."""
    profiler = SimpleProfiler()
    with pytest.raises(KeyError), profiler.profile("x"):
        raise KeyError
    assert len(profiler.recorded_durations["x"]) == 1


def work() -> int:
    """Something that a profile shows."""
    return sum(range(1000))


def test_advanced_counts_functions_where_they_ran() -> None:
    """Each action has its own functions; what runs in an inner action is not the outer one's."""
    profiler = AdvancedProfiler()
    profiler.setup("fit")
    with profiler.profile("outer"):
        work()
        with profiler.profile("inner"):
            work()
        work()
    profiler.teardown("fit")

    def calls(action: str) -> int:
        return sum(
            int(row[0]) for key, row in profiler.profiled_functions[action].items() if key[2] == "work"
        )

    assert (calls("outer"), calls("inner")) == (2, 1)
    assert "Profile of outer" in told(profiler)
    assert "(work)" in told(profiler)


def test_advanced_shortens_and_dumps(tmp_path: Path) -> None:
    """Tables are cut to the lines wanted, and statistics for pstats are written if wanted."""
    profiler = AdvancedProfiler(tmp_path, "p", line_count_restriction=1, dump_stats=True)
    profiler.setup("fit")
    with profiler.profile("[a] b"):
        work()
    profiler.teardown("fit")
    profiler.describe(lambda text: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit-p-_a__b.prof", "fit-p.txt"]
    assert "due to restriction <1>" in (tmp_path / "fit-p.txt").read_text()
    with pytest.raises(MisconfigurationError, match="line_count_restriction=0"):
        AdvancedProfiler(line_count_restriction=0)


def test_reports_go_into_files_of_their_own(tmp_path: Path) -> None:
    """With a file name the report is a file, on a group one for each rank; without one it is said."""
    for rank in (None, 0, 1):
        profiler = SimpleProfiler(filename="times")
        profiler.setup("test", rank, tmp_path)
        with profiler.profile("x"):
            pass
        assert told(profiler) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "test-times-0.txt",
        "test-times-1.txt",
        "test-times.txt",
    ]


def test_pytorch_traces_batches_of_its_schedule(tmp_path: Path) -> None:
    """By default the third to fifth batches are traced, with actions and submodules by name."""
    profiler = PyTorchProfiler(tmp_path, sort_by_key="cpu_time_total", row_limit=5)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    profiler.setup("fit", 1)
    profiler.watch(model)
    for _ in range(8):
        with profiler.profile("my action"):
            model(torch.zeros(2, 4))
        profiler.step()
    profiler.teardown("fit")
    (path,) = tmp_path.iterdir()
    assert path.name == "fit-profile-1.pt.trace.json"
    assert profiler.traces == [str(path)]
    events = json.loads(path.read_text())["traceEvents"]
    for name in ("my action", "Linear: 0"):
        assert sum(event.get("name") == name and event.get("ph") == "X" for event in events) == 3
    assert "aten::" in told(profiler)
    assert not model[0]._forward_hooks


def test_pytorch_says_nothing_of_nothing() -> None:
    """A call that is shorter than the schedule has no report, and no trace."""
    profiler = PyTorchProfiler()
    profiler.setup("fit")
    with profiler.profile("x"):
        pass
    profiler.teardown("fit")
    assert told(profiler) == ""
    assert profiler.traces == []


def test_pytorch_checks_its_arguments() -> None:
    """An argument that torch's profiler has not, and actions that cross, are errors."""
    with pytest.raises(MisconfigurationError, match=r"with_stacks=.* Did you mean 'with_stack'\?"):
        PyTorchProfiler(with_stacks=True)
    profiler = PyTorchProfiler(emit_nvtx=False)
    profiler.start("a")
    profiler.start("b")
    with pytest.raises(ValueError, match="'a' ended, and the innermost"):
        profiler.stop("a")
    profiler.teardown("")


@pytest.mark.parametrize("kind", [SimpleProfiler, AdvancedProfiler, PyTorchProfiler])
def test_profilers_pickle_between_calls(kind: Callable[[], Profiler]) -> None:
    """Before and after a call a profiler travels, with what it has found."""
    profiler = pickle.loads(pickle.dumps(kind()))
    profiler.export_to_chrome = False
    profiler.setup("fit")
    for _ in range(6):
        with profiler.profile("x"):
            torch.zeros(1) + 1
        profiler.step()
    profiler.teardown("fit")
    again = pickle.loads(pickle.dumps(profiler))
    assert again.summary() == profiler.summary() != ""


def test_the_trainer_takes_names_and_profilers() -> None:
    """Names give profilers of their own; what is neither is refused, as is one for a bare trainer."""

    def found(given: Any, **more: Any) -> Profiler:
        return pl.Trainer(logger=False, profiler=given, **more).profiler

    own = SimpleProfiler()
    assert found(own) is own
    kinds = [type(found(name)) for name in (None, "simple", "advanced", "pytorch")]
    assert kinds == [PassThroughProfiler, SimpleProfiler, AdvancedProfiler, PyTorchProfiler]
    with pytest.raises(
        MisconfigurationError, match=r"profiler='simpel'\) is unknown. Did you mean 'simple'\?"
    ):
        found("simpel")
    with pytest.raises(MisconfigurationError, match="XLA is not supported"):
        found("xla")
    with pytest.raises(MisconfigurationError, match=r"barebones=True, profiler='simple'"):
        found("simple", barebones=True)
