"""Ray's head dies while training runs: it goes on for as long as Ray waits, then everything ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
WAITS_S = 15
"""Seconds after which Ray's processes give up a head that is gone; 60 unless set."""

pytestmark = pytest.mark.ray

PROGRAM = """
import time
from pathlib import Path
from tests.orchestrator.groups import Net, group_trainer, loader


class Goes(Net):
    def on_train_batch_end(self, *arguments):
        time.sleep(0.02)
        if self.trainer.is_global_zero:
            Path("step").write_text(str(self.global_step))
        if self.global_step == 2:
            print("going", flush=True)


if __name__ == "__main__":
    group_trainer("out", max_epochs=-1).fit(Goes(), loader(32))
"""


@pytest.mark.slow
def test_training_outlives_the_head_for_as_long_as_ray_waits(tmp_path: Path) -> None:
    """Steps go on without Ray's head process; when Ray gives it up, driver and workers end, and say why."""
    (tmp_path / "driver.py").write_text(PROGRAM, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = subprocess.Popen(
        [sys.executable, "driver.py"],
        cwd=tmp_path,
        env={
            **kept,
            "PYTHONPATH": str(ROOT),
            "RAY_ADDRESS": "local",
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(WAITS_S),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family: list[psutil.Process] = []
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "going\n"
        family = psutil.Process(driver.pid).children(recursive=True)
        workers = [process for process in family if any("ray::Worker" in part for part in process.cmdline())]
        assert len(workers) == 2
        next(process for process in family if process.name() == "gcs_server").kill()
        before = int((tmp_path / "step").read_text())
        time.sleep(WAITS_S / 3)
        assert int((tmp_path / "step").read_text()) > before
        _, err = driver.communicate(timeout=120)
        assert driver.returncode not in (0, None)
        assert "Failed to connect to GCS" in err
        assert psutil.wait_procs(workers, timeout=30)[1] == []
    finally:
        driver.kill()
        driver.communicate()
        for process in family:  # Ray's own agents take longer to find out
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
