"""Sweeps over nodes of their own: early stops reach all ranks at one step, and nothing is left of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import netlab
from tests.netlab import NetLab
from tests.orchestrator.sweep.node_sweeps import STEPS

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(netlab.missing() is not None, reason=str(netlab.missing())),
]
PROGRAM = "tests.orchestrator.sweep.node_sweeps"
ENV = {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def lab() -> Iterator[NetLab]:
    with NetLab(nodes=3, cpus=2) as started:
        yield started


def start(lab: NetLab, name: str, folder: Path, **env: str) -> subprocess.Popen[str]:
    """Start a sweep's driver on the first node; it writes to ``output`` in the folder."""
    folder.mkdir(exist_ok=True)
    with open(folder / "output", "w", encoding="utf-8") as output:
        return lab.popen(
            0, [sys.executable, "-m", PROGRAM, name, str(folder)],
            stdout=output, stderr=subprocess.STDOUT, env={**ENV, **env},
        )  # fmt: skip


def finish(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Wait for a driver, and return what it has told."""
    try:
        status = process.wait(timeout=300)
    finally:
        process.kill()
        process.wait()
    text = (folder / "output").read_text(encoding="utf-8")
    assert status == 0, text
    found: dict[str, Any] = json.loads(
        next(line for line in reversed(text.splitlines()) if line.startswith("{"))
    )
    return found


def run(lab: NetLab, name: str, folder: Path, **env: str) -> dict[str, Any]:
    """Run a sweep to its end; nothing may have failed, and nothing may be left."""
    found = finish(start(lab, name, folder, **env), folder)
    assert found["errors"] == []
    assert found["held"] == {}
    return found


def notes(folder: Path) -> dict[float, dict[int, list[int]]]:
    """The steps that each rank has noted, by learning rate and rank."""
    found: dict[float, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for path in folder.glob("*.*.*"):
        rate, _, rank = path.name.rsplit(".", 2)
        found[float(rate)][int(rank)] += [int(line) for line in path.read_text(encoding="utf-8").split()]
    return found


@pytest.fixture(scope="module")
def undisturbed(lab: NetLab, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The curves of three trials on two workers each that nothing happens to."""
    streams: list[Any] = run(lab, "undisturbed", tmp_path_factory.mktemp("undisturbed") / "run")["streams"]
    assert [len(stream) for stream in streams] == [4, 4, 4]
    return streams


@pytest.mark.slow
def test_an_early_stop_reaches_all_ranks_at_one_step(lab: NetLab, tmp_path: Path) -> None:
    """ASHA over trials of two workers: by their own notes, both ranks have made the same steps, those of the
    reports and not one more."""
    found = run(lab, "asha", tmp_path / "run")
    assert found["statuses"][2:] == ["stopped", "stopped"]
    assert max(map(len, found["streams"])) == 4
    assert [len(stream) for stream in found["streams"][2:]] == [1, 1]
    told = notes(tmp_path / "run")
    for rate, stream in zip([0.1, 0.05, 0.0001, 0.00001], found["streams"], strict=True):
        whole = list(range(1, STEPS * len(stream) + 1))
        assert told[rate] == {0: whole, 1: whole}


@pytest.mark.slow
def test_a_trial_goes_through_the_loss_of_a_worker(
    lab: NetLab, undisturbed: list[Any], tmp_path: Path
) -> None:
    """Tune does not notice: each trial starts once, and its curve is the undisturbed one."""
    found = run(lab, "worker", tmp_path / "run")
    assert (tmp_path / "run" / "killed").exists()
    assert found["streams"] == undisturbed
    events = (tmp_path / "run" / "sweeps" / "mine" / "events.jsonl").read_text(encoding="utf-8")
    assert events.count('"start"') == 3


@pytest.mark.slow
def test_a_trial_whose_leading_process_is_killed_is_tried_again(
    lab: NetLab, undisturbed: list[Any], tmp_path: Path
) -> None:
    """Its workers end with it, it goes on from its last checkpoint, and its curve is the undisturbed one."""
    found = run(lab, "actor", tmp_path / "run")
    assert found["streams"] == undisturbed
    events = (tmp_path / "run" / "sweeps" / "mine" / "events.jsonl").read_text(encoding="utf-8")
    assert events.count('"start"') == 4


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_goes_on(lab: NetLab, undisturbed: list[Any], tmp_path: Path) -> None:
    """What it held is given back without it; the same command does the rest, to the undisturbed curves."""
    folder = tmp_path / "run"
    events = folder / "sweeps" / "mine" / "events.jsonl"
    process = start(lab, "driver", folder, TUNE_GLOBAL_CHECKPOINT_S="0")
    deadline = time.monotonic() + 200
    while not events.exists() or events.read_text(encoding="utf-8").count('"report"') < 6:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "output").read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert finish(start(lab, "nothing", tmp_path / "look"), tmp_path / "look") == {"held": {}}
    found = run(lab, "driver", folder)
    assert found["statuses"] == ["finished"] * 3
    assert found["streams"] == undisturbed


@pytest.mark.slow
def test_an_elastic_sweep_is_the_same_on_one_node_and_on_three(lab: NetLab, tmp_path: Path) -> None:
    """Freed workers join trials that go on; every curve, stop point and the winner are those of one node."""
    folder = tmp_path / "one"
    folder.mkdir()
    alone = {**os.environ, **ENV, "RAY_ADDRESS": "local"}
    with open(folder / "output", "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, "elastic", str(folder)],
            stdout=output, stderr=subprocess.STDOUT, text=True, env=alone,
        )  # fmt: skip
    one = finish(process, folder)
    three = run(lab, "elastic", tmp_path / "three", WAITS="1")
    for name in ("errors", "statuses", "streams", "best"):
        assert one[name] == three[name]
    assert min(map(len, one["streams"])) == 1
    assert max(map(len, one["streams"])) == 8
    joined = [path for path in (tmp_path / "three").glob("*.*.*") if not path.name.endswith(".0")]
    assert joined
