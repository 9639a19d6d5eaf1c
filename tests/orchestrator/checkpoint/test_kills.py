"""A process that is killed while it saves leaves a checkpoint that can be loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """18 kills at random points, of files, symbolic links and directories of shards; nothing is lost that
    was complete, nothing that has its name is damaged, and nothing is left lying about."""
    command = [sys.executable, "-m", "tests.orchestrator.checkpoint.kills", "18", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=250)
    assert json.loads(done.stdout) == {"kills": 18, "wrong": []}
