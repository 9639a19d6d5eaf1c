"""A run over a million rows that is killed again and again, on other numbers of processes, and its audit.

    python -m tests.chaos.exactly_once                        # 20 kills over 1,000,000 rows, some minutes
    python -m tests.chaos.exactly_once --rows 60000 --kills 4

The run is one epoch of six logical ranks, in turns: in one process, which is killed and gone on from its
newest checkpoint, and on two or three workers, of which one is killed at a time while the others go on and
another comes. Then the ledger is judged by ``orchestrator audit``, and the weights are compared with those of
a run in one process that nothing happens to. Prints JSON; the status is 1 where a sample is missing or
doubled, or a bit differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.cli import main as command
from orchestrator.strategies import ElasticStrategy

LOGICAL_RANKS, BATCH, FEATURES = 6, 128, 4
SAVES_EVERY = 10
ENOUGH = "enough"
"""The file that ends a turn on a group."""


class Net(pl.LightningModule):
    """Two layers with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean square of what should be the sum."""
        return (self.net(batch["x"]).squeeze(1) - batch["x"].sum(1)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Tells(pl.Callback):
    """Leaves a file for each process, a line for each step of the first, and ends the turn when told to.

    Args:
        folder: Of the files.
        workers: So many processes are waited for, by slow steps; 0 waits for none.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        """Say where the run is."""
        processes = trainer.strategy.processes
        (self.folder / f"pid.{os.getpid()}").touch()
        if trainer.engine.is_global_zero:
            with open(self.folder / "steps", "a", encoding="utf-8") as file:
                file.write(f"{trainer.global_step} {processes}\n")
        if (self.folder / ENOUGH).exists():
            trainer.should_stop = True
        elif processes < self.workers:
            time.sleep(0.5)
        elif self.workers:
            time.sleep(0.05)


def data(root: Path) -> Any:
    """The rows, mapped."""
    return pl.ArrowDataset(root / "rows.arrow").loader(BATCH, shuffle=True)


def write_rows(root: Path, rows: int) -> None:
    """Write the rows into one Arrow file."""
    values = np.random.default_rng(1).standard_normal(rows * FEATURES, dtype=np.float32)
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values), FEATURES)})
    with pa.ipc.new_file(str(root / "rows.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=50_000)


def train(root: Path, run: str, turn: Path, workers: int) -> str:
    """Go on with the run, in this process or on so many workers; return the hash of the weights."""
    turn.mkdir(parents=True, exist_ok=True)
    grouped: dict[str, Any] = {}
    if workers > 1:
        from ray.train import ScalingConfig

        scaling = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.1})
        grouped = {"scaling_config": scaling, "max_failures": -1}
    pl.seed_everything(5, verbose=False)
    module = Net()
    saver = ModelCheckpoint(root / run / "kept", every_n_train_steps=SAVES_EVERY, save_top_k=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, ledger=True, resume="auto",
        strategy=ElasticStrategy(
            logical_ranks=LOGICAL_RANKS, min_workers=1, max_workers=max(workers, 1)
        ),
        callbacks=[Tells(turn, workers if workers > 1 else 0), saver], log_every_n_steps=SAVES_EVERY,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=root / run,
        start_timeout_s=300, **grouped,
    )  # fmt: skip
    trainer.fit(module, data(root))
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def turn_alone(root: Path, turn: Path, steps: int) -> bool:
    """Train in a process of its own, which is killed after so many steps; return whether it was."""
    turn.mkdir()
    call = [sys.executable, "-m", "tests.chaos.exactly_once", "--turn", str(root), str(turn)]
    with open(turn / "output", "w", encoding="utf-8") as output:
        process = subprocess.Popen(call, stdout=output, stderr=subprocess.STDOUT)
    while len(_steps(turn)) < steps and process.poll() is None:
        time.sleep(0.002)
    killed = process.poll() is None
    process.kill()
    assert killed or process.wait() == 0, (turn / "output").read_text(encoding="utf-8")
    process.wait()
    return killed


def turn_on_group(root: Path, turn: Path, workers: int, kills: int, chance: random.Random) -> int:
    """Train on workers, of which one at a time is killed; return how many were."""
    turn.mkdir()
    is_over = threading.Event()
    struck: list[int] = []

    def strike() -> None:
        at = chance.randint(3, 12)
        while len(struck) < kills and not is_over.wait(0.01):
            alive = sorted(pid for pid in _told(turn) if pid != os.getpid() and _is_alive(pid))
            if len(_steps(turn)) >= at and len(alive) > 1:
                struck.append(chance.choice(alive))
                os.kill(struck[-1], signal.SIGKILL)
                at = len(_steps(turn)) + chance.randint(2, 12)
        if not is_over.is_set():
            time.sleep(0.5)
            (turn / ENOUGH).touch()

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        train(root, "run", turn, workers)
    finally:
        is_over.set()
        striker.join()
    return len(struck)


def _steps(turn: Path) -> list[str]:
    path = turn / "steps"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _told(turn: Path) -> list[int]:
    return [int(path.name.partition(".")[2]) for path in turn.glob("pid.*")]


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] not in "ZX"
    return False


def run(root: Path, rows: int, kills: int, seed: int) -> dict[str, Any]:
    """Run it all, and return what came of it."""
    write_rows(root, rows)
    steps = -(-rows // (LOGICAL_RANKS * BATCH))
    chance = random.Random(seed)
    began = time.monotonic()
    done, turns, processes = 0, 0, list[int]()
    while done < kills:
        turn = root / f"turn.{turns}"
        workers = (1, 2, 1, 3)[turns % 4]
        if workers == 1:
            done += turn_alone(root, turn, chance.randint(1, max(2, steps // (2 * kills))))
        else:
            done += turn_on_group(root, turn, workers, min(4, kills - done), chance)
        processes += [int(line.split()[1]) for line in _steps(turn)]
        turns += 1
        print(f"turn {turns} on {workers}: {done} kills, {len(_steps(turn))} steps", flush=True)
    found = train(root, "run", root / "end", 1)
    processes += [int(line.split()[1]) for line in _steps(root / "end")]
    took_s = time.monotonic() - began
    expected = train(root, "alone", root / "alone.turn", 1)
    began = time.monotonic()
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        status = command(["audit", str(root / "run"), "--json"])
    return {
        "rows": rows,
        "kills": done,
        "resizes": sum(one != other for one, other in pairwise(processes)),
        "run_s": round(took_s, 1),
        "audit_s": round(time.monotonic() - began, 2),
        "audit_status": status,
        "audit": json.loads(told.getvalue()),
        "same_weights": found == expected,
    }


def main() -> None:
    """Run it, or one turn of it that is to be killed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--turn", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn is not None:
        train(arguments.turn[0], "run", arguments.turn[1], 1)
        return
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name), arguments.rows, arguments.kills, arguments.seed)
    print(json.dumps(found))
    raise SystemExit(not (found["audit_status"] == 0 and found["same_weights"]))


if __name__ == "__main__":
    main()
