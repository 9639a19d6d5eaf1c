"""strategy="elastic" on groups of workers: one hash and one stream of metrics, whoever hosts, dies or "
"comes."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import orchestrator as pl
from orchestrator.callbacks import Callback, ModelCheckpoint
from orchestrator.strategies import ElasticStrategy
from tests.orchestrator.test_recovery import Net, Points

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
LOGICAL_RANKS = 6


class Dies(Net):
    """Ends the process that it is in at given places and steps, each once.

    Args:
        faults: (place, process by its order, step) of each.
        folder: For files that say what has happened.
        waits: Take long steps until so many processes are there.
    """

    def __init__(self, faults: list[tuple[str, int, int]], folder: Path, waits: int = 0) -> None:
        super().__init__()
        self.faults, self.folder, self.waits = faults, folder, waits

    def die(self, place: str) -> None:
        """End this process, where a fault says so."""
        assert self.trainer.engine is not None
        here = place, self.trainer.engine.place.rank, self.trainer.global_step
        for index, fault in enumerate(self.faults):
            mark = self.folder / f"fault.{index}"
            if fault == here and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.waits and self.trainer.strategy.processes < self.waits and self.trainer.global_step > 1:
            time.sleep(1.0)
        return super().training_step(batch, batch_idx)


class Notes(Callback):
    """Notes how many processes there are at each step, in a file of each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        with open(self.folder / f"processes.{os.getpid()}", "a", encoding="utf-8") as file:
            file.write(f"{trainer.strategy.processes}\n")


def fit(
    folder: Path,
    workers: int,
    faults: tuple[tuple[str, int, int], ...] = (),
    *,
    epochs: int = 3,
    waits: int = 0,
    ckpt_path: Path | None = None,
    kind: type[Dies] = Dies,
    **strategy: Any,
) -> dict[str, Any]:
    """Train, and return what identifies the result, with the numbers of processes that there were."""
    folder.mkdir(parents=True)
    pl.seed_everything(3, verbose=False)
    module = kind(list(faults), folder, waits)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=workers,
        resources_per_worker={"CPU": 0.1} if workers > 1 else None,
        strategy=ElasticStrategy(logical_ranks=LOGICAL_RANKS, **strategy),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=pl.loggers.CSVLogger(folder, flush_logs_every_n_steps=1),
        start_timeout_s=300,
        max_epochs=epochs,
        log_every_n_steps=2,
        callbacks=[Notes(folder), ModelCheckpoint(dirpath=folder / "ckpt", monitor="val", save_top_k=-1)],
    )
    trainer.fit(
        module,
        DataLoader(Points(), batch_size=4, shuffle=True),
        DataLoader(Points(), batch_size=5),
        ckpt_path=ckpt_path,
    )
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    assert all((folder / f"fault.{index}").exists() for index in range(len(faults)))
    notes = [path.read_text(encoding="utf-8").split() for path in folder.glob("processes.*")]
    return {
        "weights": digest.hexdigest(),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "steps": trainer.global_step,
        "samples": trainer.samples_seen,
        "rows": (Path(trainer.log_dir or "") / "metrics.csv").read_text(encoding="utf-8").splitlines(),
        "files": sorted(path.name for path in (folder / "ckpt").iterdir()),
        "rng": float(torch.rand(())),
        "processes": {int(number) for lines in notes for number in lines},
    }


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """All but who took part is equal."""
    assert {**found, "processes": None} == {**expected, "processes": None}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run in one process, where Ray is not started."""
    return fit(tmp_path_factory.mktemp("alone") / "run", 1)


def test_another_number_of_workers_gives_the_same_bits(alone: dict[str, Any], tmp_path: Path) -> None:
    """Weights, metrics, rows of the log, checkpoint names and the random state are those of one process."""
    found = fit(tmp_path / "run", 2)
    same(found, alone)
    assert found["processes"] == {2}


def test_a_checkpoint_goes_on_at_any_number_of_workers(alone: dict[str, Any], tmp_path: Path) -> None:
    """One process, then two workers, then three: each goes on where the last has left off."""
    path: Path | None = None
    for epochs, workers in ((1, 1), (2, 2), (3, 3)):
        found = fit(tmp_path / str(workers), workers, epochs=epochs, ckpt_path=path)
        path = next((tmp_path / str(workers) / "ckpt").iterdir())
    assert {name: found[name] for name in ("weights", "metrics", "steps", "samples")} == {
        name: alone[name] for name in ("weights", "metrics", "steps", "samples")
    }


@pytest.mark.parametrize(
    "faults",
    [
        (("before step", 0, 3), ("batch end", 0, 4)),
        (("validation", 2, 3), ("forward", 1, 7)),
    ],
    ids=str,
)
def test_a_lost_process_leaves_no_trace(
    alone: dict[str, Any], faults: tuple[tuple[str, int, int], ...], tmp_path: Path
) -> None:
    """Wherever processes die, the first one included, the others go on to the bits of the undisturbed run."""
    found = fit(tmp_path / "run", 3, faults)
    same(found, alone)
    assert 2 in found["processes"]


def test_who_comes_is_taken_in(alone: dict[str, Any], tmp_path: Path) -> None:
    """More workers than at the start come as there is room, behind a step, and change nothing."""
    found = fit(tmp_path / "run", 2, waits=3, max_workers=3)
    same(found, alone)
    assert found["processes"] == {2, 3}


class LosesTheRest(Dies):
    """Of two processes the first dies; the other does while somebody makes itself ready for its place, and
    once the driver knows of a checkpoint.
    """

    def setup(self, stage: str) -> None:
        if (self.folder / "fault.0").exists() and not (self.folder / "coming").exists():
            (self.folder / "coming").touch()
            self.wait_for("fault.1")
            time.sleep(0.5)

    def die(self, place: str) -> None:
        if (place, self.trainer.global_step) == ("forward", 3) and (self.folder / "fault.0").exists():
            self.wait_for("coming")
            self.wait_for("ckpt/epoch=0-step=3.ckpt")
            time.sleep(0.5)  # the driver has heard of it
        super().die(place)

    def wait_for(self, name: str) -> None:
        """Wait until another process has left a file."""
        until = time.monotonic() + 200
        while not (self.folder / name).exists():
            assert time.monotonic() < until
            time.sleep(0.05)


def test_all_can_be_lost_while_somebody_comes(alone: dict[str, Any], tmp_path: Path) -> None:
    """Who comes has its number for itself; the run begins again and gives the same."""
    found = fit(tmp_path / "run", 2, (("forward", 0, 2), ("forward", 0, 3)), kind=LosesTheRest, min_workers=1)
    same(found, alone)


class Silent(Dies):
    """Logs nothing."""

    def log(self, *args: Any, **options: Any) -> None:
        """Do nothing."""


def test_a_process_that_has_logged_nothing_can_be_lost(tmp_path: Path) -> None:
    """Where a logical rank has nothing to tell, that is known of it too."""
    found = []
    for name, workers, faults in (("alone", 1, []), ("lost", 2, [("forward", 1, 1)])):
        (tmp_path / name).mkdir()
        pl.seed_everything(3, verbose=False)
        module = Silent(faults, tmp_path / name)
        pl.Trainer(
            accelerator="cpu",
            devices=workers,
            resources_per_worker={"CPU": 0.1} if workers > 1 else None,
            strategy=ElasticStrategy(logical_ranks=LOGICAL_RANKS),
            max_failures=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(module, DataLoader(Points(), batch_size=4, shuffle=True))
        assert (tmp_path / name / "fault.0").exists() == bool(faults)
        found.append([tensor.tolist() for tensor in module.state_dict().values()])
    assert found[0] == found[1]
