"""A run on a group looks, from the driver, like a run in the driver: objects, metrics, files, errors."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import orchestrator as pl
from cluster import pool
from cluster.errors import ClusterError, PlacementError
from orchestrator.callbacks import EarlyStopping, ModelCheckpoint
from orchestrator.loggers import CSVLogger
from tests.orchestrator.groups import Net, group_trainer, loader

pytestmark = pytest.mark.ray


class Recorder(pl.Callback):
    """Counts, and remembers what it met."""

    def __init__(self) -> None:
        self.epochs = 0
        self.module: Any = None
        self.weight: Any = None
        self.pids: list[int] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self.epochs += 1
        self.module = pl_module
        self.weight = pl_module.net[0].weight
        self.pids = trainer.strategy.gather(os.getpid())

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}


def test_the_driver_holds_the_result(tmp_path: Path) -> None:
    """After fit on a group the driver's module, metrics, callbacks and paths are as if it had run here."""
    module, recorder = Net(), Recorder()
    weight = module.net[0].weight
    before = weight.detach().clone()
    trainer = group_trainer(
        tmp_path,
        logger=CSVLogger(tmp_path),
        enable_checkpointing=True,
        callbacks=[recorder, ModelCheckpoint(monitor="val_loss"), EarlyStopping("val_loss", patience=9)],
        num_sanity_val_steps=1,
        log_every_n_steps=1,
    )
    trainer.fit(module, loader(64, shuffle=True), loader(40))
    assert module.net[0].weight is weight
    assert not torch.equal(weight, before)
    assert recorder.module is module
    assert recorder.weight is weight
    assert recorder.epochs == 2
    assert os.getpid() not in recorder.pids
    assert (trainer.current_epoch, trainer.global_step, trainer.samples_seen) == (2, 8, 128)
    assert set(trainer.callback_metrics) == {"train_loss", "val_loss"}
    best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    saved = Net.load_from_checkpoint(best)
    assert saved.hparams == {"features": 8, "width": 16}
    assert torch.equal(saved.net[0].weight, weight)
    assert trainer.early_stopping_callback.best_score == trainer.callback_metrics["val_loss"]  # type: ignore[union-attr]
    with open(os.path.join(trainer.log_dir or "", "metrics.csv"), encoding="utf-8") as file:
        assert "val_loss" in file.readline()


def test_a_warm_group_serves_call_after_call(tmp_path: Path) -> None:
    """Fit, validate, test, predict and fit again run in the same processes; predictions keep their order."""
    module, recorder = Net(), Recorder()
    trainer = group_trainer(tmp_path, callbacks=[recorder], max_epochs=1)
    trainer.fit(module, loader(30))
    first = recorder.pids
    (validated,) = trainer.validate(module, loader(30), verbose=False)
    (tested,) = trainer.test(module, loader(30), verbose=False)
    assert validated["val_loss"] == tested["test_loss"]
    predicted = trainer.predict(module, loader(30))
    inputs = torch.cat([batch[0] for batch in loader(30)])
    with torch.no_grad():
        assert torch.equal(torch.cat(predicted), torch.cat([module(part) for part in inputs.split(8)]))
    again = group_trainer(tmp_path, callbacks=[Recorder()], max_epochs=1)
    again.fit(module, loader(30))
    assert again.callbacks[0].pids == first  # type: ignore[attr-defined]


def test_the_random_stream_goes_on_as_rank_0s(tmp_path: Path) -> None:
    """Two fits in a row differ, and the same seed before gives the same numbers after."""

    class Noisy(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(torch.nn.functional.dropout(inputs, 0.3, self.training))

    def run() -> tuple[Tensor, Tensor]:
        torch.manual_seed(4)
        module = Noisy()
        group_trainer(tmp_path, max_epochs=1).fit(module, loader(32))
        return module.net[0].weight.detach().clone(), torch.rand(3)

    (weights, after), (weights_again, after_again) = run(), run()
    assert torch.equal(weights, weights_again)
    assert torch.equal(after, after_again)
    torch.manual_seed(4)
    assert not torch.equal(after, torch.rand(3))


def test_attributes_come_back_and_what_cannot_is_named(tmp_path: Path) -> None:
    """Plain attributes of the module return; one that does not pickle stays, and is named in a warning."""

    class Keeps(Net):
        def on_train_end(self) -> None:
            self.seen = {"steps": self.global_step, "net": self.net}
            self.handle = (number for number in range(3))

    module = Keeps()
    with pytest.warns(UserWarning, match="handle"):
        group_trainer(tmp_path, max_epochs=1).fit(module, loader(32))
    assert module.seen["steps"] == 2
    assert module.seen["net"] is module.net
    assert not hasattr(module, "handle")


def test_prints_of_rank_0_are_seen_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What rank 0 prints appears as it was written; other ranks' prints do not."""

    class Talks(Net):
        def on_train_start(self) -> None:
            print(f"rank {self.global_rank} starts")

    group_trainer(tmp_path, max_epochs=1).fit(Talks(), loader(32))
    assert capfd.readouterr().out == "rank 0 starts\n"


def test_an_exception_on_one_rank_is_the_users_own(tmp_path: Path) -> None:
    """It has its own type, names rank and step, shows the user's frames, and nothing keeps running."""

    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.global_rank == 1 and batch_idx == 1:
                raise ZeroDivisionError("no such luck")
            return super().training_step(batch, batch_idx)

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="no such luck") as caught:
        group_trainer(tmp_path).fit(Fails(), loader(64))
    note = "\n".join(caught.value.__notes__)
    assert "rank 1 of 2" in note
    assert "step 1" in note
    assert "in training_step" in note
    assert "orchestrator/engine.py" not in note
    assert time.monotonic() - began < 60  # not the collective's timeout of 300 s


def test_training_resumes_on_a_group_bit_for_bit(tmp_path: Path) -> None:
    """Going on from a checkpoint of the middle of an epoch equals the run that was never stopped."""

    class Drops(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(torch.nn.functional.dropout(inputs, 0.3, self.training))

    def run(ckpt_path: str | None = None) -> dict[str, Tensor]:
        torch.manual_seed(1)
        module = Drops()
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = group_trainer(tmp_path, callbacks=[saver], enable_checkpointing=True)
        trainer.fit(module, loader(60, batch_size=6, shuffle=True), ckpt_path=ckpt_path)
        return module.state_dict()

    whole = run()
    for step in (3, 5):
        resumed = run(str(tmp_path / f"step={step}.ckpt"))
        for name, weights in whole.items():
            assert torch.equal(weights, resumed[name]), (step, name)


def test_more_workers_than_cpus_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    """A gang that can never fit is refused at once, saying what was asked and what there is."""
    with pytest.raises(PlacementError, match=r"64.*CPU"):
        pl.Trainer(accelerator="cpu", devices=64, default_root_dir=tmp_path, logger=False).fit(
            Net(), loader(32)
        )


def test_stopping_on_one_rank_stops_all_together(tmp_path: Path) -> None:
    """should_stop set on one rank ends training on all at the next log point."""

    class Stops(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_rank == 1 and trainer.global_step == 2:
                trainer.should_stop = True

    trainer = group_trainer(tmp_path, callbacks=[Stops()], log_every_n_steps=4, max_epochs=3)
    trainer.fit(Net(), loader(160))
    assert trainer.global_step == 4


def test_a_group_of_one_computes_what_this_process_does(tmp_path: Path) -> None:
    """A scaling configuration of one worker runs on Ray and gives the same bits as this process."""
    from ray.train import ScalingConfig

    def run(**where: Any) -> tuple[dict[str, Tensor], Any]:
        torch.manual_seed(2)
        module = Net()
        trainer = pl.Trainer(
            max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, **where
        )
        trainer.fit(module, loader(50, shuffle=True), loader(20))
        return module.state_dict(), trainer.callback_metrics

    here, metrics_here = run(accelerator="cpu", devices=1)
    config = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5})
    there, metrics_there = run(scaling_config=config)
    for name, weights in here.items():
        assert torch.equal(weights, there[name]), name
    assert metrics_here == metrics_there


def test_workers_have_the_drivers_seed_not_that_of_rays_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray hands its workers the variables of the process that started it, at that time."""

    class Notes(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seed = os.environ.get("ORCHESTRATOR_GLOBAL_SEED")
            (tmp_path / f"{trainer.max_epochs}-{trainer.global_rank}").write_text(f"{seed}")

    lease = pool.lease
    started_with = (("ORCHESTRATOR_GLOBAL_SEED", "99"),)
    monkeypatch.setattr(pool, "lease", lambda spec: lease(replace(spec, env=started_with)))
    group_trainer(tmp_path, max_epochs=1, callbacks=[Notes()]).fit(Net(), loader(32))
    monkeypatch.setenv("ORCHESTRATOR_GLOBAL_SEED", "7")
    group_trainer(tmp_path, max_epochs=2, callbacks=[Notes()]).fit(Net(), loader(32))
    notes = {path.name: path.read_text() for path in tmp_path.glob("?-?")}
    assert notes == {"1-0": "None", "1-1": "None", "2-0": "7", "2-1": "7"}


def test_what_cannot_be_pickled_is_named_before_anything_starts(tmp_path: Path) -> None:
    """The error names the attribute of the module that cannot travel."""
    module = Net()
    module.source = (number for number in range(3))
    with pytest.raises(ClusterError, match="source"):
        group_trainer(tmp_path).fit(module, loader(32))


def test_loader_processes_take_what_the_script_defines(tmp_path: Path) -> None:
    """A data set and a collate function that only the user's script knows work in loader processes."""

    class Squares(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> Any:
            return torch.full((8,), float(index)), index % 2

    def collate(samples: list[Any]) -> Any:
        return torch.stack([inputs for inputs, _ in samples]), torch.tensor([label for _, label in samples])

    data = torch.utils.data.DataLoader(Squares(), batch_size=3, num_workers=1, collate_fn=collate)
    trainer = group_trainer(tmp_path, max_epochs=1)
    trainer.fit(Net(), data)
    assert trainer.samples_seen == 12


def test_a_wish_to_stop_before_the_first_step_is_shared(tmp_path: Path) -> None:
    """should_stop set on one rank before the first batch ends training on all, without anybody waiting."""

    class StopsAtOnce(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = trainer.global_rank == 0

    trainer = group_trainer(tmp_path, callbacks=[StopsAtOnce()])
    trainer.fit(Net(), loader(32))
    assert trainer.global_step == 0


def test_a_failed_run_leaves_what_it_had_saved(tmp_path: Path) -> None:
    """After a failure the driver knows the last checkpoint, and training goes on from it."""

    class FailsOnce(Net):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1 and not (tmp_path / "failed").exists():
                if self.global_rank == 1:
                    (tmp_path / "failed").touch()
                    raise RuntimeError("once")
                self.trainer.strategy.barrier()

    saver = ModelCheckpoint(tmp_path / "saved", save_last=True)
    trainer = group_trainer(tmp_path, callbacks=[saver], enable_checkpointing=True)
    module = FailsOnce()
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(module, loader(32))
    assert trainer.interrupted
    assert (trainer.current_epoch, trainer.global_step) == (1, 2)
    assert os.path.exists(saver.best_model_path)
    trainer.fit(module, loader(32), ckpt_path="last")
    assert (trainer.current_epoch, trainer.global_step) == (2, 4)


def test_buffers_and_extra_state_come_home(tmp_path: Path) -> None:
    """Buffers that no checkpoint holds, frozen parameters and a module's extra state are as if run here."""

    class Counts(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()), persistent=False)
            self.extra = {"batches": 0}

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.seen += 1
            self.extra["batches"] += 1
            return super().training_step(batch, batch_idx)

        def on_train_end(self) -> None:
            self.net[0].weight.requires_grad_(False)

        def get_extra_state(self) -> dict[str, int]:
            return self.extra

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.extra = state

    module = Counts()
    group_trainer(tmp_path, max_epochs=1).fit(module, loader(32))
    assert module.seen == 2
    assert module.extra == {"batches": 2}
    assert not module.net[0].weight.requires_grad


class Slips(Net):
    """Fails on rank 1 as long as it is told to, and holds a thread from setup to teardown."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails

    def setup(self, stage: str) -> None:
        self.over = threading.Event()
        threading.Thread(target=self.over.wait, name="held", daemon=True).start()

    def teardown(self, stage: str) -> None:
        self.over.set()
        del self.over  # it could not travel

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.fails and self.global_rank == 1 and self.global_step == 1:
            raise LookupError("a slip of the pen")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("max_failures", [0, 3])
def test_the_same_workers_train_again_behind_an_exception(tmp_path: Path, max_failures: int) -> None:
    """All ranks have cleaned up, those too that waited for the one that failed; the bits are as ever."""
    before, after, alone = Recorder(), Recorder(), Net()
    group_trainer(tmp_path, callbacks=[before], max_failures=max_failures).fit(Net(), loader(32))
    with pytest.raises(LookupError, match="a slip of the pen"):
        group_trainer(tmp_path, max_failures=max_failures).fit(Slips(fails=True), loader(32))
    trained = Slips(fails=False)
    group_trainer(tmp_path, callbacks=[after], max_failures=max_failures).fit(trained, loader(32))
    assert after.pids == before.pids
    group_trainer(tmp_path, max_failures=max_failures).fit(alone, loader(32))
    for one, other in zip(trained.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
