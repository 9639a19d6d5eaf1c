"""Going on from a checkpoint is the same as never having stopped: to the bit, from any moment of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset

import orchestrator as pl
from modules.checkpoint.format import CheckpointError
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.tiny import FEATURES, Tiny, Validated, loader, loss_of, points, quiet_trainer

EPOCHS = 3
BATCHES = 7  # an odd number, so that the last window of two batches holds one


def configure(parameters: Any) -> Any:
    """An optimizer with state, and a scheduler of each kind; the plateau's rate depends on every step."""
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    return [optimizer], [
        {"scheduler": LinearLR(optimizer, 0.5, total_iters=9), "interval": "step"},
        {"scheduler": StepLR(optimizer, 2)},
        {"scheduler": ReduceLROnPlateau(optimizer, patience=0, factor=0.7), "monitor": "train_loss"},
        {
            "scheduler": ReduceLROnPlateau(optimizer, patience=0, factor=0.9),
            "interval": "step",
            "monitor": "val_loss",
            "strict": False,
        },
    ]


class Noisy(Validated):
    """Draws random numbers in training and in validation, and logs what its schedulers watch."""

    def __init__(self, build: Callable[[Any], Any] = configure) -> None:
        super().__init__(build, dropout=0.3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = loss_of(self.net, batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("largest", loss, on_step=True, on_epoch=True, reduce_fx="max")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", loss_of(self.net, batch) + torch.rand(()))


class Counts(pl.Callback):
    """Has a state that hooks change; not on_train_epoch_start: a hook that saves runs again on resuming."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = list(state_dict["seen"])

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append(f"batch {batch_idx} {float(outputs['loss'])!r}")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(f"validation {float(trainer.callback_metrics['val_loss'])!r}")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(f"end {float(trainer.callback_metrics['train_loss'])!r}")


class Saves(pl.Callback):
    """Saves at each call of the hooks it is given, and lists the paths."""

    def __init__(self, folder: Path, *hooks: str) -> None:
        self.folder = folder
        self.hooks = hooks
        self.paths: list[Path] = []

    def _save(self, trainer: pl.Trainer, hook: str) -> None:
        if hook in self.hooks and not trainer.sanity_checking:
            self.paths.append(self.folder / f"{len(self.paths):02d}-{hook}.ckpt")
            trainer.save_checkpoint(self.paths[-1])

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "on_train_epoch_start")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._save(trainer, "on_train_batch_end")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "on_validation_start")

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "on_validation_epoch_end")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "on_validation_end")


def outcome(module: pl.LightningModule, trainer: pl.Trainer, counts: Counts) -> dict[str, Any]:
    """All that a run leaves behind."""
    return {
        "weights": dict(module.state_dict()),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "counters": (
            trainer.global_step,
            trainer.current_epoch,
            trainer.batches_seen,
            trainer.samples_seen,
        ),
        "callback": counts.seen,
        "metrics": dict(trainer.callback_metrics),
        "random": torch.get_rng_state(),
    }


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Both are equal, tensors to the bit."""
    if isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where} {key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), (where, left, right)
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where} {index}")
    else:
        assert left == right, where


def run(
    data: Callable[[], tuple[Any, Any]],
    callbacks: list[pl.Callback],
    ckpt_path: Path | None = None,
    module: Callable[[], pl.LightningModule] = Noisy,
    seed: int = 29,
    **arguments: Any,
) -> dict[str, Any]:
    """Train a new module in a new trainer on new loaders, and return the outcome."""
    torch.manual_seed(seed)
    built, counts = module(), Counts()
    trainer = quiet_trainer(counts, *callbacks, **{"max_epochs": EPOCHS, **arguments})
    train, val = data()
    trainer.fit(built, train, val, ckpt_path=ckpt_path)
    return outcome(built, trainer, counts)


def shuffled() -> tuple[Any, Any]:
    """Loaders that draw from the global generator."""
    return loader(4 * BATCHES - 1, shuffle=True), loader(6, shuffle=True)


HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_epoch_end",
    "on_validation_end",
)


@pytest.mark.parametrize(
    "arguments",
    [
        {"accumulate_grad_batches": 2, "val_check_interval": 3},
        {"val_check_interval": 1.0},
        {"check_val_every_n_epoch": None, "val_check_interval": 5, "gradient_clip_val": 0.1},
        {"precision": "16-mixed", "accumulate_grad_batches": 3, "limit_train_batches": 5},
    ],
    ids=["accumulate", "plain", "over-epochs", "fp16"],
)
def test_a_run_goes_on_from_any_moment(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Resumed from any batch or validation, a run ends with the weights, states and numbers it had anyway."""
    saves = Saves(tmp_path, *HOOKS)
    whole = run(shuffled, [saves], **arguments)

    assert len(saves.paths) > 20
    for path in saves.paths:
        resumed = run(shuffled, [], path, seed=1, **arguments)
        assert_same(resumed, whole, path.name)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_can_be_resumed(workers: int, tmp_path: Path) -> None:
    """A run that was stopped and resumed several times is the run that never stopped."""

    def data() -> tuple[Any, Any]:
        return loader(4 * BATCHES, shuffle=True, num_workers=workers), loader(4)

    saves = Saves(tmp_path / "a", "on_train_batch_end")
    whole = run(data, [saves], accumulate_grad_batches=2)
    again = Saves(tmp_path / "b", "on_train_batch_end")
    assert_same(run(data, [again], saves.paths[4], seed=1, accumulate_grad_batches=2), whole, "second")
    third = run(data, [], again.paths[6], seed=2, accumulate_grad_batches=2)
    assert_same(third, whole, "third")


class Stream(IterableDataset[Any]):
    """Samples in an order that is drawn when reading begins; its length is not known."""

    def __iter__(self) -> Iterator[Any]:
        data = points(4 * BATCHES - 1)
        return (data[index] for index in torch.randperm(len(data)).tolist())


def streamed() -> tuple[Any, Any]:
    """A loader without a length."""
    return DataLoader(Stream(), batch_size=4), loader(6)


def listed() -> tuple[Any, Any]:
    """A list of batches instead of a loader."""
    return list(loader(4 * BATCHES - 1)), loader(6)


def with_generator() -> tuple[Any, Any]:
    """A loader that draws from a generator of its own."""
    return loader(4 * BATCHES - 1, shuffle=True, generator=torch.Generator().manual_seed(4)), loader(6)


@pytest.mark.parametrize("data", [streamed, listed, with_generator])
def test_any_kind_of_data_goes_on(data: Callable[[], tuple[Any, Any]], tmp_path: Path) -> None:
    """Streams, lists and loaders with a generator of their own go on at the very sample."""
    arguments: dict[str, Any] = {"accumulate_grad_batches": 2, "max_epochs": 2}
    saves = Saves(tmp_path, "on_train_batch_end", "on_validation_end")
    whole = run(data, [saves], **arguments)
    for path in saves.paths:
        assert_same(run(data, [], path, seed=1, **arguments), whole, path.name)


@pytest.mark.parametrize("data", [shuffled, with_generator, listed])
def test_more_epochs_than_planned(data: Callable[[], tuple[Any, Any]], tmp_path: Path) -> None:
    """A finished run goes on when max_epochs is raised, from its last epoch's file or one saved after fit."""
    whole = run(data, [])
    keeps = ModelCheckpoint(tmp_path, filename="{epoch}")
    torch.manual_seed(29)
    module, counts = Noisy(), Counts()
    trainer = quiet_trainer(counts, keeps, max_epochs=EPOCHS - 1, enable_checkpointing=True)
    trainer.fit(module, *data())
    trainer.save_checkpoint(tmp_path / "after.ckpt")

    for path in (Path(keeps.best_model_path), tmp_path / "after.ckpt"):
        resumed = run(data, [], path, seed=1)
        # What the callback did in the epoch's last hook comes after the first file, or before it.
        assert_same({**resumed, "callback": None}, {**whole, "callback": None}, path.name)
    assert_same(resumed, whole, "callback")


def test_more_steps_than_planned(tmp_path: Path) -> None:
    """A run that max_steps ended in the middle of an epoch goes on there when max_steps is raised."""
    whole = run(shuffled, [], max_epochs=-1, max_steps=12)
    keeps = ModelCheckpoint(tmp_path)
    run(shuffled, [keeps], enable_checkpointing=True, max_epochs=-1, max_steps=5)
    content = torch.load(keeps.best_model_path, weights_only=True)
    assert content["orchestrator"]["counters"]["epoch_batches"] == 5
    resumed = run(shuffled, [], Path(keeps.best_model_path), seed=1, max_epochs=-1, max_steps=12)
    assert_same({**resumed, "callback": None}, {**whole, "callback": None})


def test_steps_that_end_with_the_epoch_end_it(tmp_path: Path) -> None:
    """When max_steps is reached by an epoch's last batch, the epoch is complete and the next one follows."""
    whole = run(shuffled, [], max_epochs=2)
    keeps = ModelCheckpoint(tmp_path)
    run(shuffled, [keeps], enable_checkpointing=True, max_epochs=-1, max_steps=BATCHES)
    content = torch.load(keeps.best_model_path, weights_only=True)
    assert content["orchestrator"]["counters"]["epoch_ended"] == 1
    resumed = run(shuffled, [], Path(keeps.best_model_path), seed=1, max_epochs=2)
    assert_same({**resumed, "callback": None}, {**whole, "callback": None})


def test_nothing_is_left_to_do(tmp_path: Path) -> None:
    """Resuming a finished run with the same limits changes nothing and calls no training hook."""
    torch.manual_seed(29)
    module, counts = Noisy(), Counts()
    trainer = quiet_trainer(counts, max_epochs=EPOCHS)
    trainer.fit(module, *shuffled())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert_same(run(shuffled, [], tmp_path / "end.ckpt", seed=1), outcome(module, trainer, counts))


def test_metrics_of_an_earlier_validation_are_still_there(tmp_path: Path) -> None:
    """A scheduler that watches a metric of an earlier epoch finds it after resuming."""

    def watches_validation(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        scheduler = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}

    def module() -> pl.LightningModule:
        return Noisy(watches_validation)

    def data() -> tuple[Any, Any]:
        return loader(8), loader(4)

    class ValidatesFirst(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.board.callback.setdefault("val_loss", torch.tensor(1.0))

    arguments: dict[str, Any] = {"module": module, "check_val_every_n_epoch": 2}
    saves = Saves(tmp_path, "on_train_batch_end")
    whole = run(data, [ValidatesFirst(), saves], **arguments)
    for path in saves.paths:
        assert_same(run(data, [], path, seed=1, **arguments), whole, path.name)


def test_frozen_and_unused_parameters_do_not_matter(tmp_path: Path) -> None:
    """In the middle of a window only gradients that exist are kept, and they come back."""

    class PartlyFrozen(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.net[0].requires_grad_(False)
            self.unused = torch.nn.Linear(1, 1)

    saves = Saves(tmp_path, "on_train_batch_end")
    whole = run(shuffled, [saves], module=PartlyFrozen, accumulate_grad_batches=3)
    gradients = [
        torch.load(path, weights_only=True)["orchestrator"]["ranks"][0]["gradients"].keys()
        for path in saves.paths[:3]
    ]
    trained = {"net.3.weight", "net.3.bias"}
    assert gradients == [trained, trained, set()]
    resumed = run(shuffled, [], saves.paths[1], module=PartlyFrozen, seed=1, accumulate_grad_batches=3)
    without_unused = {name for name in whole["weights"] if "unused" not in name}
    for name in without_unused:
        assert torch.equal(resumed["weights"][name], whole["weights"][name])


# ---------------------------------------------------------------- what is in a file


def test_a_file_is_plain(tmp_path: Path) -> None:
    """A checkpoint loads with weights_only=True and names Lightning's keys and ours."""

    class Saved(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"width": 8, "path": Path("a/b")})

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["own"] = {"numbers": [1, 2.5]}

    saves = Saves(tmp_path, "on_train_batch_end")
    run(shuffled, [saves], module=Saved, max_epochs=1)
    content = torch.load(saves.paths[3], weights_only=True)
    assert content["own"] == {"numbers": [1, 2.5]}
    assert content["hyper_parameters"] == {"width": 8, "path": "a/b"}
    assert (content["epoch"], content["global_step"]) == (0, 4)
    assert content["callbacks"] == {"Counts": {"seen": content["callbacks"]["Counts"]["seen"]}}
    assert {"state_dict", "optimizer_states", "lr_schedulers", "pytorch-lightning_version"} <= content.keys()
    ours = content["orchestrator"]
    assert ours["cursor"] == {
        "epoch": 0,
        "position": 16,
        "batches": 4,
        "seed": 0,
        "fingerprint": f"TensorDataset[{4 * BATCHES - 1}]",
    }
    assert ours["counters"]["global_step"] == 4


def test_what_cannot_be_plain_is_named(tmp_path: Path) -> None:
    """A state that is no plain value is left out of the file with a warning that names it."""

    class Odd(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"fine": 1, "odd": object()}

    trainer = quiet_trainer(Odd())
    trainer.fit(Tiny(), loader(4))
    with pytest.warns(UserWarning, match=r"leaves out callbacks\..*Odd\.odd \(object\)"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    (state,) = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"].values()
    assert state == {"fine": 1, "odd": None}


def test_saving_needs_a_run(tmp_path: Path) -> None:
    """A trainer that has not run yet has nothing to save, and says when it will."""
    with pytest.raises(RuntimeError, match="this trainer has no run in this process"):
        pl.Trainer(logger=False).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(RuntimeError, match="this trainer has no run in this process"):
        pl.Trainer(logger=False).dump_checkpoint()


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of the middle of an epoch of eight batches."""
    saves = Saves(tmp_path, "on_train_batch_end")
    quiet_trainer(saves).fit(Tiny(), loader(32))
    return saves.paths[2]


def test_other_data_are_refused(saved: Path) -> None:
    """Going on in the middle of an epoch of other data is refused, naming both."""
    with pytest.raises(
        MisconfigurationError, match=r"TensorDataset\[32\], and the training data is .*\[24\]"
    ):
        quiet_trainer().fit(Tiny(), loader(24), ckpt_path=saved)


def test_another_batch_size_or_accumulation_is_refused(saved: Path) -> None:
    """In the middle of an epoch the batches that are left would be others: refused, naming what differs."""
    with pytest.raises(MisconfigurationError, match="the batch size or the way samples are dealt"):
        quiet_trainer().fit(Tiny(), loader(32, batch_size=8), ckpt_path=saved)
    with pytest.raises(MisconfigurationError, match="accumulate_grad_batches=1, and it is 3 now"):
        quiet_trainer(accumulate_grad_batches=3).fit(Tiny(), loader(32), ckpt_path=saved)


def test_other_data_may_follow_a_whole_epoch(tmp_path: Path) -> None:
    """A checkpoint of the end of an epoch may go on with other data."""
    trainer = quiet_trainer()
    trainer.fit(Tiny(), loader(32))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    more = quiet_trainer(max_epochs=2)
    more.fit(Tiny(), loader(24), ckpt_path=tmp_path / "end.ckpt")
    assert (more.global_step, more.samples_seen) == (8 + 6, 32 + 24)


def test_a_file_of_weights_cannot_go_on(tmp_path: Path) -> None:
    """A weights-only file is refused by fit and accepted by validate."""
    trainer = quiet_trainer()
    trained = Validated()
    trainer.fit(trained, loader(8))
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    content = torch.load(tmp_path / "weights.ckpt", weights_only=True)
    assert "optimizer_states" not in content
    with pytest.raises(MisconfigurationError, match="holds weights only"):
        quiet_trainer().fit(Validated(), loader(8), ckpt_path=tmp_path / "weights.ckpt")
    fresh = Validated()
    quiet_trainer().validate(fresh, loader(8), ckpt_path=tmp_path / "weights.ckpt", verbose=False)
    assert torch.equal(fresh.net[0].weight, trained.net[0].weight)


def test_another_configuration_is_refused(saved: Path) -> None:
    """A file with other numbers of optimizers or schedulers is refused, naming both numbers."""
    with pytest.raises(
        MisconfigurationError, match="0 learning-rate schedulers, configure_optimizers returned 4"
    ):
        quiet_trainer().fit(Noisy(), loader(32), ckpt_path=saved)


def test_other_weights_are_refused(saved: Path) -> None:
    """Weights of other names or shapes are torch's own error, before anything trains."""

    class Wider(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Linear(FEATURES, 1)

    with pytest.raises(RuntimeError, match=r"Missing key.*more\.weight"):
        quiet_trainer().fit(Wider(), loader(32), ckpt_path=saved)


def test_a_file_must_be_there_and_be_one(tmp_path: Path) -> None:
    """A path without a file, and a file that is no checkpoint, are refused before anything starts."""
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.ckpt"):
        quiet_trainer().fit(Tiny(), loader(8), ckpt_path=tmp_path / "nowhere.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.ckpt cannot be read as a checkpoint"):
        quiet_trainer().fit(Tiny(), loader(8), ckpt_path=tmp_path / "text.ckpt")


def test_the_best_checkpoint_must_be_there() -> None:
    """ "best" is refused while there is none, with what to do."""
    with pytest.raises(MisconfigurationError, match=r"ckpt_path='best'\): .*ModelCheckpoint"):
        quiet_trainer().fit(Tiny(), loader(8), ckpt_path="best")


def test_best_and_last_are_found(tmp_path: Path) -> None:
    """After a fit the best and the last checkpoint can be named by these words, and test takes the best."""
    keeps = ModelCheckpoint(tmp_path, monitor="val_loss", mode="max", save_last=True)
    trainer = quiet_trainer(keeps, max_epochs=3, enable_checkpointing=True)
    module = Validated()
    trainer.fit(module, loader(8), loader(4))
    last = module.net[0].weight.clone()

    with pytest.warns(UserWarning, match="it takes the best checkpoint"):
        trainer.test(dataloaders=loader(4), verbose=False)
    assert not torch.equal(module.net[0].weight, last)
    assert trainer.ckpt_path == keeps.best_model_path
    trainer.validate(module, loader(4), ckpt_path="last", verbose=False)
    assert torch.equal(module.net[0].weight, last)
    trainer.validate(module, loader(4), ckpt_path="best", verbose=False)
    assert not torch.equal(module.net[0].weight, last)
