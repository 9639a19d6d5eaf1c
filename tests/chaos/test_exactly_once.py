"""A run that is killed again and again uses each sample once: the program that shows it, over fewer rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_kills_and_resizes_lose_no_sample() -> None:
    """5 kills, of whole processes and of workers whose place another takes: no sample is missing or doubled,
    and the weights are those of the run that nothing happened to.
    """
    command = [sys.executable, "-m", "tests.chaos.exactly_once", "--rows", "60000", "--kills", "5"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (epoch,) = found["audit"]["epochs"]
    assert (found["kills"], epoch["used"], epoch["missing"], epoch["doubled"]) == (5, 60000, 0, 0)
    assert found["resizes"] >= 2
