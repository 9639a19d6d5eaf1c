"""Trials take over each other's processes and nothing else, pause, are copied, and go on after a crash."""

from __future__ import annotations

import gc
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray import tune

import orchestrator as pl
from cluster import session
from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.rungs import SynchronousRungs
from tests.orchestrator.groups import Net, loader

pytestmark = pytest.mark.ray

QUIET = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}


class Tuned(Net):
    """A module whose learning rate is searched for, and reported beside the loss."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = torch.nn.functional.mse_loss(self(batch[0]), torch.ones(len(batch[0]), 2))
        self.log("val", loss)
        if self.trainer.optimizers:
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        noise = torch.rand(len(batch[0]), 1)  # so that the random state counts
        return torch.nn.functional.mse_loss(self(batch[0]) + 0.1 * noise, torch.ones(len(batch[0]), 2))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.5)


class Data(pl.LightningDataModule):
    """The same few rows in each trial."""

    def train_dataloader(self) -> Any:
        return loader(32)

    def val_dataloader(self) -> Any:
        return loader(16)


@pytest.fixture(scope="module", autouse=True)
def ray_is_running() -> None:
    """Start Ray before the first sweep, so that its start is not part of a test."""
    session.connect()


def sweep(space: dict[str, Any], folder: Path, epochs: int, **options: Any) -> pl.Sweep:
    """A sweep of `Tuned`."""
    return pl.Sweep(
        Tuned, space, metric="val", datamodule=Data(), trainer={**QUIET, "max_epochs": epochs},
        storage_path=folder, verbose=False, **options,
    )  # fmt: skip


def left_behind(before: set[str]) -> list[str]:
    """Actors' processes and placement groups that are there and were not."""
    deadline = time.monotonic() + 5
    while True:
        groups = [
            key for key, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"
        ]
        titles = [(process.info["cmdline"] or [""])[0] for process in psutil.process_iter(["cmdline"])]
        found = [title for title in titles if title.startswith(("ray::Tuned", "ray::trial_job"))]
        left = [*(set(groups) - before), *found]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def test_trials_share_a_process_and_leak_nothing(tmp_path: Path) -> None:
    """One process runs them all; each finds it as the first did, and nothing is left at the end."""
    before = {key for key, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"}

    def trial_job(config: dict[str, Any]) -> None:
        found = {
            "pid": os.getpid(),
            "random": random.random(),
            "leak": os.environ.get("LEAK"),
            "dtype": str(torch.get_default_dtype()),
            "seen": list(trial_job.__dict__),
        }
        Path(tmp_path, f"{config['number']}.json").write_text(json.dumps(found), encoding="utf-8")
        os.environ["LEAK"] = "1"
        trial_job.leak = 1  # type: ignore[attr-defined]
        trainer = pl.Trainer(max_epochs=1, **QUIET)
        trainer.fit(Tuned(), loader(16), loader(16))
        torch.set_default_dtype(torch.float64)

    result = pl.Sweep(
        trial_job, {"number": tune.grid_search([0, 1, 2])}, metric="val", max_concurrent_trials=1,
        storage_path=tmp_path / "sweeps", save_checkpoints=False, verbose=False,
    ).run()  # fmt: skip
    assert result.errors == []
    found = [json.loads(Path(tmp_path, f"{n}.json").read_text(encoding="utf-8")) for n in range(3)]
    assert len({each["pid"] for each in found}) == 1
    assert len({each["random"] for each in found}) == 3
    assert {(each["leak"], each["dtype"], *each["seen"]) for each in found} == {(None, "torch.float32")}
    assert left_behind(before) == []


@pytest.mark.slow
def test_the_winner_loads_and_the_sweep_can_be_extended(tmp_path: Path) -> None:
    """A finished sweep under its name runs only what is new; all trials count, and a different one is
    refused."""
    space = {"lr": tune.loguniform(1e-3, 0.5)}
    first = sweep(space, tmp_path, 2, name="mine", num_samples=2).run()
    more = sweep(space, tmp_path, 2, name="mine", num_samples=3).run()
    assert len(more) == 3
    assert [result.metrics["training_iteration"] for result in more] == [2, 2, 2]
    configs = [result.config["lr"] for result in more]
    assert configs[:2] == [result.config["lr"] for result in first]
    lines = (tmp_path / "mine" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum('"start"' in line for line in lines) == 3
    best = more.best_trial
    assert best.value == min(result.metrics["val"] for result in more)
    module = more.load_best_module(Tuned)
    assert module.lr == best.config["lr"]
    found = pl.Trainer(**QUIET, enable_checkpointing=False).validate(module, datamodule=Data(), verbose=False)
    assert found[0]["val"] == pytest.approx(best.value)
    names = {"report.html", "results.parquet", "results.csv", "reports.parquet", "trial_00002"}
    assert names <= set(os.listdir(more.path))
    assert list(Path(best.path).glob("events.out.tfevents.*"))
    with pytest.raises(MisconfigurationError, match="mode was 'min', is 'max'"):
        sweep(space, tmp_path, 2, name="mine", num_samples=3, mode="max").run()


@pytest.mark.slow
def test_a_paused_trial_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """With one place for waves of two, trials wait for each other at a rung; every curve is a prefix of what
    the same trial gives when nothing stops it."""
    space = {"lr": tune.grid_search([0.01, 0.1, 0.3])}
    free = sweep(space, tmp_path, 4, save_checkpoints=False).run()
    rule = SynchronousRungs(max_t=4, reduction_factor=2, concurrency=2)
    ruled = sweep(space, tmp_path, 4, scheduler=rule, max_concurrent_trials=1, save_checkpoints=False).run()
    assert ruled.errors == []
    whole = [record.values("val") for record in free._records]
    kept = [record.values("val") for record in ruled._records]
    assert sorted(map(len, kept))[0] == 1
    assert max(map(len, kept)) == 4
    assert kept == [values[: len(mine)] for values, mine in zip(whole, kept, strict=True)]


@pytest.mark.slow
def test_a_bad_trial_takes_over_a_good_ones_state_with_its_own_settings(tmp_path: Path) -> None:
    """Population based training copies weights, and the new learning rate holds."""
    from ray.tune.schedulers import PopulationBasedTraining

    rule = PopulationBasedTraining(
        time_attr="training_iteration", perturbation_interval=2, quantile_fraction=0.5,
        hyperparam_mutations={"lr": [0.2, 0.4]}, resample_probability=1.0, synch=True,
    )  # fmt: skip
    result = sweep({"lr": tune.grid_search([1e-5, 0.1])}, tmp_path, 5, scheduler=rule).run()
    assert result.errors == []
    bad = result._records[0]
    assert bad.config["lr"] in (0.2, 0.4)
    assert dict(bad.values("lr"))[5] == pytest.approx(bad.config["lr"])
    losses = dict(bad.values("val"))
    assert losses[5] < 0.7 * losses[1]


class Crash(tune.Callback):
    """Ends the driver's part of a sweep after some reports."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        self.left -= 1
        if not self.left:
            raise RuntimeError("a planned crash of the driver")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # Tune's own, which the crash leaves
def test_the_same_command_goes_on_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished trials stay, the one that ran goes on from its checkpoint, the rest follow."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    space = {"lr": tune.grid_search([0.01, 0.1])}
    crashing = sweep(
        space, tmp_path, 4, name="mine", max_concurrent_trials=1,
        run_config=tune.RunConfig(callbacks=[Crash(6)]),
    )  # fmt: skip
    with pytest.raises(tune.TuneError, match="a planned crash"):
        crashing.run()
    result = sweep(space, tmp_path, 4, name="mine", max_concurrent_trials=1).run()
    assert result.errors == []
    assert [record.status for record in result._records] == ["finished", "finished"]
    assert [len(record.reports) for record in result._records] == [4, 4]
    lines = (tmp_path / "mine" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    reports = [json.loads(line) for line in lines if '"report"' in line]
    assert sum(event["trial"] == "trial_00000" for event in reports) == 4
    assert sum(event["trial"] == "trial_00001" for event in reports) <= 6
    del crashing
    gc.collect()  # closes the files that Tune has not


def test_a_trial_whose_process_is_killed_is_tried_again(tmp_path: Path) -> None:
    """From its last checkpoint, in a new process; other trials do not notice."""

    def train(config: dict[str, Any]) -> None:
        class Dies(pl.Callback):
            def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
                mark = tmp_path / f"killed-{config['lr']}"
                if config["lr"] == 0.1 and trainer.current_epoch == 2 and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), 9)

        trainer = pl.Trainer(max_epochs=3, callbacks=[Dies()], **QUIET)
        trainer.fit(Tuned(config["lr"]), loader(32), loader(16))

    result = pl.Sweep(
        train, {"lr": tune.grid_search([0.1, 0.2])}, metric="val", max_failures=1, max_concurrent_trials=1,
        storage_path=tmp_path / "sweeps", verbose=False,
    ).run()  # fmt: skip
    assert result.errors == []
    assert (tmp_path / "killed-0.1").exists()
    assert [len(record.reports) for record in result._records] == [3, 3]
    lines = (Path(result.path) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    reports = [json.loads(line)["number"] for line in lines if '"report"' in line and "trial_00000" in line]
    assert reports == [1, 2, 3]
