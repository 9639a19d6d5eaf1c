"""Real Lightning objects, unmodified, in our Trainer: modules, data modules, callbacks and loggers."""

from __future__ import annotations

import csv
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator as pl
from orchestrator import foreign
from orchestrator.foreign_trainer import ForeignTrainer
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import (
    Validated,
    assert_equal_weights,
    loader,
    loss_of,
    network,
    points,
    quiet_trainer,
)

pytestmark = pytest.mark.extras


@pytest.fixture
def lightning() -> Iterator[Any]:
    """Lightning, kept from talking; its warnings are its own."""
    found = pytest.importorskip("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield found


def trainer_of(framework: Any, *callbacks: Any, **arguments: Any) -> Any:
    """A quiet trainer of `framework`."""
    if framework is pl:
        return quiet_trainer(*callbacks, **arguments)
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return framework.Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), **{**defaults, **arguments}
    )


def adam_with_steps(module: nn.Module) -> Any:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]


def sgd(module: nn.Module) -> Any:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def plateau(module: nn.Module) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.1)
    return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}


def module_of(lightning: Any, configure: Any = adam_with_steps, dropout: float = 0.0) -> Any:
    """A module of Lightning's that uses what modules use."""

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, scale: float = 1.0) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = network(dropout)
            self.seen: list[Any] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = loss_of(self.net, batch) * self.hparams.scale
            self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict({"val_loss": loss_of(self.net, batch)})

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", loss_of(self.net, batch))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(batch[0])

        def on_train_epoch_end(self) -> None:
            trainer, optimizer = self.trainer, self.optimizers()
            self.seen.append(
                (
                    self.current_epoch,
                    self.global_step,
                    trainer.is_global_zero,
                    round(float(trainer.callback_metrics["val_loss"]), 6),
                    round(optimizer.param_groups[0]["lr"], 6),
                )
            )

        def configure_optimizers(self) -> Any:
            return configure(self)

    return Module


@pytest.mark.parametrize(
    ("configure", "arguments"),
    [
        (sgd, {}),
        (adam_with_steps, {}),
        (plateau, {}),
        (sgd, {"accumulate_grad_batches": 2}),
        (sgd, {"gradient_clip_val": 0.01}),
        (adam_with_steps, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        (adam_with_steps, {"precision": "bf16-mixed"}),
    ],
    ids=["sgd", "adam", "plateau", "accumulation", "norm", "value", "bf16"],
)
def test_a_module_trains_to_the_same_bits(lightning: Any, configure: Any, arguments: dict[str, Any]) -> None:
    """One module class under Lightning's Trainer and ours: the same weights, hooks' views and metrics."""
    results = []
    for framework in (lightning, pl):
        torch.manual_seed(7)
        module = module_of(lightning, configure, dropout=0.2)(scale=2.0)
        trainer = trainer_of(framework, max_epochs=3, **arguments)
        trainer.fit(module, loader(16, shuffle=True), loader(8))
        results.append((module, trainer))
    (theirs, their_trainer), (ours, our_trainer) = results
    assert_equal_weights(ours, theirs)
    assert ours.seen == theirs.seen and len(ours.seen) == 3
    assert our_trainer.callback_metrics.keys() == their_trainer.callback_metrics.keys()
    for name, value in their_trainer.callback_metrics.items():
        torch.testing.assert_close(our_trainer.callback_metrics[name], value)


def test_overrides_may_call_what_they_override(lightning: Any) -> None:
    """Hooks that call Lightning's own methods by `super` work, with an optimizer that needs closures too."""

    class Calls(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return loss_of(self.net, batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            assert not self.training
            self.log("val_loss", loss_of(self.net, batch))

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

        def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
            super().backward(loss, *args, **kwargs)

        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            super().configure_gradient_clipping(optimizer, *args, **kwargs)

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            super().lr_scheduler_step(scheduler, metric)

        def on_validation_model_eval(self) -> None:
            super().on_validation_model_eval()

        def on_validation_model_train(self) -> None:
            super().on_validation_model_train()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.LBFGS(self.parameters(), max_iter=3)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    modules = []
    for framework in (lightning, pl):
        modules.append(Calls())
        trainer = trainer_of(framework, max_epochs=2, gradient_clip_val=0.5)
        trainer.fit(modules[-1], loader(16), loader(4))
    assert_equal_weights(modules[1], modules[0])


def test_its_callbacks_and_loggers_serve_our_modules(lightning: Any, tmp_path: Path) -> None:
    """Lightning's callbacks and loggers work with a module of ours too; our checkpoints go to its logs."""
    callbacks, written = lightning.callbacks, []

    class Writes(callbacks.BasePredictionWriter):  # type: ignore[misc, name-defined]
        def write_on_batch_end(self, trainer: Any, module: Any, prediction: Any, *args: Any) -> None:
            written.append(prediction)

    used = [Writes("batch"), callbacks.LearningRateMonitor(), callbacks.EarlyStopping("val_loss")]
    logger = lightning.loggers.CSVLogger(tmp_path)
    trainer = trainer_of(pl, *used, logger=logger, max_epochs=2, enable_checkpointing=True)
    trainer.fit(Validated(), loader(8), loader(4))
    trainer.predict(trainer.lightning_module, loader(8))
    assert len(written) == 2
    assert Path(trainer.checkpoint_callback.best_model_path).parent == Path(logger.log_dir) / "checkpoints"


def test_evaluation_gives_the_same_results(lightning: Any) -> None:
    """validate, test and predict of one module agree with Lightning's."""
    module = module_of(lightning)()
    found = []
    for framework in (lightning, pl):
        trainer = trainer_of(framework)
        found.append(
            (
                trainer.validate(module, loader(8), verbose=False),
                trainer.test(module, loader(8), verbose=False),
                trainer.predict(module, loader(8)),
            )
        )
    (their_val, their_test, their_predictions), (val, test, predictions) = found
    assert val[0] == pytest.approx(their_val[0]) and test[0] == pytest.approx(their_test[0])
    assert all(map(torch.equal, predictions, their_predictions))


def test_a_run_leaves_no_trace_in_the_module(lightning: Any) -> None:
    """Afterwards the module is Lightning's again: it trains there, pickles, and its log is Lightning's."""
    module = module_of(lightning)()
    before = set(module.__dict__)
    trainer_of(pl).fit(module, loader(8), loader(4))
    assert set(module.__dict__) == before
    pickle.dumps(module.state_dict())
    trainer_of(lightning).fit(module, loader(8), loader(4))
    assert len(module.seen) == 2


def test_hooks_run_as_under_lightning(lightning: Any) -> None:
    """The hooks that a module, a data module and a callback of Lightning's override run in the same order."""
    names = [
        "setup",
        "on_fit_start",
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_before_zero_grad",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_train_batch_end",
        "on_validation_start",
        "on_validation_batch_end",
        "on_validation_epoch_end",
        "on_train_epoch_end",
        "on_train_end",
        "on_fit_end",
        "teardown",
    ]

    def recording(name: str, who: str) -> Any:
        def hook(self: Any, *args: Any, **kwargs: Any) -> None:
            said.append(f"{who}.{name}")

        return hook

    def of(base: Any, who: str, chosen: list[str]) -> Any:
        return type(who, (base,), {name: recording(name, who) for name in chosen})

    logs = []
    for framework in (lightning, pl):
        said: list[str] = []
        module = of(module_of(lightning), "module", names)()
        data = of(lightning.LightningDataModule, "data", ["prepare_data", "setup", "teardown"])()
        data.train_dataloader = lambda: loader(8)
        data.val_dataloader = lambda: loader(4)
        trainer_of(framework, of(lightning.Callback, "callback", names)()).fit(module, datamodule=data)
        logs.append(said)
    assert logs[1] == logs[0]
    assert {"data.prepare_data", "callback.on_train_batch_end", "module.on_train_end"} <= set(logs[1])


def test_a_data_module_serves_and_records(lightning: Any, tmp_path: Path) -> None:
    """A data module of Lightning's may be given in place of loaders; its hyperparameters are saved."""

    class Data(lightning.LightningDataModule):  # type: ignore[misc]
        def __init__(self, batch_size: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters()

        def setup(self, stage: str) -> None:
            self.data = points(16)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(self.data, batch_size=self.hparams.batch_size)

        val_dataloader = train_dataloader

    trainer = trainer_of(pl)
    trainer.fit(module_of(lightning)(scale=3.0), Data(8))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["datamodule_hyper_parameters"] == {"batch_size": 8}
    assert saved["hyper_parameters"] == {"scale": 3.0}
    again = module_of(lightning).load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.hparams.scale == 3.0
    assert_equal_weights(again, trainer.lightning_module)


def test_lightnings_checkpoints_and_stops_are_the_same(lightning: Any, tmp_path: Path) -> None:
    """Its ModelCheckpoint and EarlyStopping save the same files and stop at the same epoch."""
    found = []
    for framework in (lightning, pl):
        root = tmp_path / framework.__name__
        saver = lightning.callbacks.ModelCheckpoint(root, monitor="val_loss", save_top_k=2, save_last=True)
        stopper = lightning.callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.2)
        trainer = trainer_of(framework, stopper, saver, max_epochs=8, enable_checkpointing=True)
        trainer.fit(module_of(lightning)(), loader(16), loader(8))
        names = sorted(path.name for path in root.iterdir())
        found.append((names, Path(saver.best_model_path).name, stopper.stopped_epoch, trainer.current_epoch))
        assert trainer.checkpoint_callback is saver and trainer.early_stopping_callback is stopper
        trainer.test(ckpt_path="best", dataloaders=loader(4), verbose=False)
    assert found[1] == found[0]
    assert "last.ckpt" in found[1][0] and 0 < found[1][3] < 8


def test_a_run_goes_on_with_lightnings_callbacks(lightning: Any, tmp_path: Path) -> None:
    """Their states are in our checkpoint, and are restored from it."""

    class Counts(lightning.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = 0

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            self.batches += 1

        def state_dict(self) -> dict[str, Any]:
            return {"batches": self.batches}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.batches = state["batches"]

    saver = lightning.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    trainer_of(pl, Counts(), saver, enable_checkpointing=True).fit(
        module_of(lightning)(), loader(16), loader(4)
    )
    counts = Counts()
    trainer = trainer_of(pl, counts, max_epochs=2)
    trainer.fit(module_of(lightning)(), loader(16), loader(4), ckpt_path=saver.last_model_path)
    assert counts.batches == 8 and trainer.global_step == 8


def test_lightnings_loggers_record_the_same(lightning: Any, tmp_path: Path) -> None:
    """Its CSV logger holds the same rows, its learning-rate monitor's included."""
    rows = []
    for framework in (lightning, pl):
        logger = lightning.loggers.CSVLogger(tmp_path / framework.__name__)
        boards = lightning.loggers.TensorBoardLogger(tmp_path / framework.__name__, name="boards")
        monitor = lightning.callbacks.LearningRateMonitor()
        trainer = trainer_of(framework, monitor, logger=[logger, boards], max_epochs=2, log_every_n_steps=2)
        trainer.fit(module_of(lightning)(scale=2.0), loader(16), loader(8))
        assert list(Path(boards.log_dir).glob("events.out.tfevents.*"))
        assert trainer.logger is logger and "scale: 2.0" in Path(logger.log_dir, "hparams.yaml").read_text()
        with open(Path(logger.log_dir) / "metrics.csv") as file:
            table = list(csv.DictReader(file))
        rows.append([{name: float(value) for name, value in row.items() if value} for row in table])
    assert len(rows[1]) == len(rows[0])
    for ours, theirs in zip(rows[1], rows[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_lightnings_progress_bars_draw_instead_of_ours(
    lightning: Any, bar: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its bars and summaries show all stages, and ours is silent."""
    pytest.importorskip("tqdm")
    callbacks = lightning.callbacks
    shown = [getattr(callbacks, bar)(), callbacks.ModelSummary(), callbacks.RichModelSummary()]
    trainer = trainer_of(pl, *shown, enable_progress_bar=True)
    trainer.fit(module_of(lightning)(), loader(16), loader(8))
    trainer.test(trainer.lightning_module, loader(8))
    trainer.predict(trainer.lightning_module, loader(8))
    said = "".join(capfd.readouterr())
    assert "Testing" in said and "Predicting" in said and "Trainable params" in said
    assert "batches in" not in said


def test_other_built_in_callbacks_work(lightning: Any) -> None:
    """Timers, averages, fine-tuning and lambdas of Lightning's do here what they do there."""
    callbacks = lightning.callbacks

    class Thaws(callbacks.BaseFinetuning):  # type: ignore[misc, name-defined]
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)

    def trainable(module: Any) -> Any:
        return torch.optim.SGD([item for item in module.parameters() if item.requires_grad], lr=0.1)

    averaged, thawed, heard = [], [], []
    for framework in (lightning, pl):
        average = callbacks.EMAWeightAveraging(decay=0.5)
        averaged.append(module_of(lightning)())
        trainer_of(framework, average, max_epochs=2).fit(averaged[-1], loader(16), loader(4))
        used = [
            callbacks.Timer("00:01:00:00"),
            callbacks.LambdaCallback(on_train_start=lambda trainer, module: heard.append(type(trainer))),
            Thaws(),
        ]
        thawed.append(module_of(lightning, trainable)())
        trainer_of(framework, *used, max_epochs=2).fit(thawed[-1], loader(16), loader(4))
        assert used[0].time_elapsed() > 0
    assert_equal_weights(averaged[1], averaged[0])
    assert averaged[1].seen == averaged[0].seen
    assert_equal_weights(thawed[1], thawed[0])
    assert heard == [lightning.Trainer, ForeignTrainer]


@pytest.mark.parametrize("name", ["StochasticWeightAveraging", "OnExceptionCheckpoint", "BatchSizeFinder"])
def test_callbacks_of_lightnings_loops_are_refused(lightning: Any, name: str) -> None:
    """The error names the class and ours of the same name."""
    arguments = {"StochasticWeightAveraging": (0.1,), "OnExceptionCheckpoint": ("x",)}.get(name, ())
    callback = getattr(lightning.callbacks, name)(*arguments)
    with pytest.raises(
        pl.MisconfigurationError, match=rf"Lightning's {name}.*orchestrator\.callbacks\.{name}"
    ):
        trainer_of(pl, callback)


def test_a_module_that_replaces_log_is_refused(lightning: Any) -> None:
    """Its original reaches into Lightning's Trainer; the error says what to do."""
    kind = type("Louder", (module_of(lightning),), {"log": lambda self, *args, **kwargs: None})
    with pytest.raises(pl.MisconfigurationError, match=r"Louder overrides log\(\).*another name"):
        trainer_of(pl).fit(kind(), loader(8), loader(4))


def test_what_lightnings_trainer_alone_has_is_named(lightning: Any) -> None:
    """A callback that reads an inner part that we lack gets an error that says which."""

    class Curious(lightning.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer._signal_connector  # noqa: B018

    with pytest.raises(AttributeError, match=r"trainer\._signal_connector: something of Lightning's"):
        trainer_of(pl, Curious()).fit(module_of(lightning)(), loader(8), loader(4))


def test_a_lightning_callback_stops_and_saves_through_the_trainer(lightning: Any, tmp_path: Path) -> None:
    """What a callback sets on the trainer it gets is set on ours."""

    class Stops(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 3
            if trainer.should_stop:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    trainer = trainer_of(pl, Stops(), max_epochs=5)
    trainer.fit(module_of(lightning)(), loader(16), loader(4))
    assert trainer.global_step == 3 and (tmp_path / "stopped.ckpt").exists()


def test_a_lightning_callback_may_set_the_limits(lightning: Any) -> None:
    """trainer.fit_loop.max_epochs set by a callback of Lightning's ends our training."""

    class Shortens(lightning.Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.fit_loop.max_epochs = 2

    trainer = trainer_of(pl, Shortens(), max_epochs=5)
    trainer.fit(module_of(lightning)(), loader(8), loader(4))
    assert (trainer.current_epoch, trainer.max_epochs) == (2, 2)


def test_a_metric_object_is_logged(lightning: Any) -> None:
    """A torchmetrics object inside a Lightning module is computed over the epoch."""
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(module_of(lightning)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.error(self.net(batch[0]), batch[1])
            self.log("val_error", self.error)
            self.log("val_loss", loss_of(self.net, batch))

    (found,) = trainer_of(pl).validate(Measured(), loader(10), verbose=False)
    assert found["val_error"] == pytest.approx(found["val_loss"])


def test_manual_optimization_steps_as_under_lightning(lightning: Any) -> None:
    """A module that steps two optimizers itself, with toggling, ends at the same weights."""

    class Adversaries(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.first, self.second = network(), network()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            one, two = self.optimizers()
            self.toggle_optimizer(one)
            one.zero_grad()
            self.manual_backward(loss_of(self.first, batch) + self.second(batch[0]).pow(2).mean())
            self.clip_gradients(one, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            one.step()
            self.untoggle_optimizer(one)
            two.zero_grad()
            self.manual_backward(loss_of(self.second, batch))
            two.step()
            for scheduler in self.lr_schedulers():
                scheduler.step()

        def configure_optimizers(self) -> Any:
            optimizers = [torch.optim.Adam(net.parameters(), 0.05) for net in (self.first, self.second)]
            return optimizers, [torch.optim.lr_scheduler.StepLR(item, 3) for item in optimizers]

    modules = []
    for framework in (lightning, pl):
        modules.append(Adversaries())
        trainer_of(framework, max_epochs=2).fit(modules[-1], loader(16))
    assert_equal_weights(modules[1], modules[0])


def test_only_lightnings_own_classes_are_taken_for_its() -> None:
    """A class of the same name from elsewhere is no Lightning object."""
    stranger = type("LightningModule", (nn.Module,), {"__module__": "elsewhere"})
    assert not foreign.is_module(stranger())
    with pytest.raises(pl.MisconfigurationError, match="which is not a LightningModule"):
        quiet_trainer().fit(stranger(), loader(8))  # type: ignore[arg-type]


@pytest.mark.ray
def test_real_objects_on_a_group(lightning: Any, tmp_path: Path) -> None:
    """On two workers module, data module, callbacks and logger of Lightning's do their work and come home."""
    Module = module_of(lightning)

    class Data(lightning.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return loader(16)

        def val_dataloader(self) -> Any:
            return loader(8)

    class Ranks(lightning.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.ranks = [
                int(item) for item in trainer.strategy.all_gather(torch.tensor(trainer.global_rank))
            ]

    module, ranks = Module(), Ranks()
    before = module.net[0].weight.detach().clone()
    saver = lightning.callbacks.ModelCheckpoint(tmp_path / "saved", monitor="val_loss", save_last=True)
    logger = lightning.loggers.CSVLogger(tmp_path)
    trainer = group_trainer(
        tmp_path,
        logger=logger,
        callbacks=[lightning.callbacks.EarlyStopping("val_loss"), saver, ranks],
        enable_checkpointing=True,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=Data())
    assert not torch.equal(module.net[0].weight, before)
    assert ranks.ranks == [0, 1] and len(module.seen) == 2
    saved = torch.load(saver.last_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], item) for name, item in module.state_dict().items())
    assert Path(saver.best_model_path).exists() and saver.best_model_score is not None
    assert "val_loss" in Path(logger.log_dir, "metrics.csv").read_text()
    (tested,) = trainer.test(module, loader(8), verbose=False)
    assert tested.keys() == {"test_loss"}
