"""What cannot work is refused in words, and what fails in the user's code leaves everything as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import orchestrator as pl
from modules.module_hooks import ModuleHooks
from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.tiny import Tiny, Validated, loader, loss_of, points, quiet_trainer

# ---------------------------------------------------------------- modules


class NoTrainingStep(pl.LightningModule):
    def configure_optimizers(self) -> Any:
        return None


class NoOptimizers(pl.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class Iterates(Tiny):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return next(dataloader_iter)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Tiny, r"fit\(\) got a type.*Give an instance, not the class"),
        (nn.Linear(2, 1), r"fit\(\) got a Linear.*Subclass orchestrator\.LightningModule"),
        ("tiny", r"fit\(\) got a str.*Subclass"),
        (NoTrainingStep(), r"fit\(\) needs NoTrainingStep\.training_step\(\), which is not defined"),
        (NoOptimizers(), r"fit\(\) needs NoOptimizers\.configure_optimizers\(\), which is not defined"),
        (
            Iterates(),
            r"Iterates\.training_step takes dataloader_iter.*training_step\(self, batch, batch_idx\)",
        ),
    ],
)
def test_what_is_no_module_for_training_is_refused(module: Any, message: str) -> None:
    """fit says what the module lacks, before any data is read."""
    with pytest.raises(MisconfigurationError, match=message):
        quiet_trainer().fit(module, loader(4))


@pytest.mark.parametrize("entry", ["validate", "test"])
def test_evaluation_needs_its_step(entry: str) -> None:
    """validate and test name the step that the module lacks."""
    step = {"validate": "validation_step", "test": "test_step"}[entry]
    with pytest.raises(MisconfigurationError, match=rf"{entry}\(\) needs Tiny\.{step}\(\)"):
        getattr(quiet_trainer(), entry)(Tiny(), loader(4))


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_a_call_without_a_module_needs_an_earlier_one(entry: str) -> None:
    """Without a module, and none seen yet, the error says to give one."""
    with pytest.raises(MisconfigurationError, match=rf"{entry}\(\) needs a module"):
        getattr(quiet_trainer(), entry)(dataloaders=loader(4))


def test_a_training_step_takes_a_batch() -> None:
    """A training_step of the wrong signature is refused, showing what it takes."""

    class TakesNothing(Tiny):
        def training_step(self) -> Any:  # type: ignore[override]
            return None

    class TakesTooMuch(Tiny):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
            return None

    with pytest.raises(
        MisconfigurationError, match=r"training_step takes \(\)\. Define training_step\(self, b"
    ):
        quiet_trainer().fit(TakesNothing(), loader(4))
    with pytest.raises(MisconfigurationError, match=r"takes \(batch, batch_idx, optimizer_idx\)"):
        quiet_trainer().fit(TakesTooMuch(), loader(4))


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda loss: loss.item(), "training_step returned float"),
        (lambda loss: (loss,), "training_step returned tuple"),
        (lambda loss: "low", "training_step returned str"),
        (lambda loss: {"losses": loss}, r"training_step returned a dictionary with keys \['losses'\]"),
        (lambda loss: {"loss": 1.0}, r"training_step returned a dictionary with keys \['loss'\]"),
        (lambda loss: loss.expand(3), r"training_step returned a loss of shape \(3,\)\. Return one number"),
        (lambda loss: {"loss": loss.expand(2, 2)}, r"returned a loss of shape \(2, 2\)"),
    ],
)
def test_what_is_no_loss_is_refused(returned: Any, message: str) -> None:
    """A loss of another type or shape is refused, saying what was returned and what to return."""

    class Returns(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return returned(loss_of(self.net, batch))

    with pytest.raises(MisconfigurationError, match=message):
        quiet_trainer().fit(Returns(), loader(4))


def test_a_loss_of_one_element_is_one() -> None:
    """A loss of shape (1,), alone or in a dictionary with more, is taken; hooks see it as it was returned."""
    seen: list[Any] = []

    class Returns(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = loss_of(self.net, batch).reshape(1)
            return loss if batch_idx else {"loss": loss, "more": "kept"}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(outputs)

    quiet_trainer().fit(Returns(), loader(8))
    assert [set(outputs) for outputs in seen] == [{"loss", "more"}, {"loss"}]
    assert all(not outputs["loss"].requires_grad and outputs["loss"].shape == (1,) for outputs in seen)


def test_hooks_see_no_outputs_of_a_batch_without_loss() -> None:
    """When training_step returns None, hooks get an empty dictionary and no backward pass runs."""
    seen: list[Any] = []

    class ReturnsNone(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

        def on_before_backward(self, loss: Tensor) -> None:
            seen.append("backward")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(outputs)

    module = ReturnsNone()
    before = module.net[0].weight.clone()
    trainer = quiet_trainer()
    trainer.fit(module, loader(8))
    assert seen == [{}, {}]
    assert trainer.global_step == 2
    assert torch.equal(module.net[0].weight, before)


def test_hooks_see_the_loss_as_it_was_returned() -> None:
    """The loss that hooks see is not divided by the batches of the accumulation window."""
    seen: list[float] = []

    class One(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return loss_of(self.net, batch) * 0 + 6.0

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(float(outputs["loss"]))

    quiet_trainer(accumulate_grad_batches=3).fit(One(), loader(12))
    assert seen == [6.0, 6.0, 6.0]


def test_an_optimizer_step_must_run_the_closure() -> None:
    """An overridden optimizer_step that leaves the closure out is refused, since no forward pass ran."""

    class Forgets(Tiny):
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
        ) -> None:
            optimizer.step()

    with pytest.raises(MisconfigurationError, match=r"Forgets\.optimizer_step did not run the closure"):
        quiet_trainer().fit(Forgets(), loader(4))


def test_fp16_does_not_go_with_a_closure() -> None:
    """16-mixed with an optimizer that runs the forward pass within its step is refused."""
    with pytest.raises(MisconfigurationError, match=r"precision='16-mixed'.*Use 'bf16-mixed' or 32"):
        quiet_trainer(precision="16-mixed").fit(Tiny(torch.optim.LBFGS), loader(4))


def test_fp16_does_not_clip_what_a_fused_optimizer_unscales() -> None:
    """16-mixed, clipping and a fused optimizer together are refused before training."""
    module = Tiny(partial(torch.optim.Adam, fused=True))
    with pytest.raises(RuntimeError, match=r"Adam\(fused=True\).*Leave out fused=True or gradient_clip_val"):
        quiet_trainer(precision="16-mixed", gradient_clip_val=1.0).fit(module, loader(4))


# ---------------------------------------------------------------- data


class Data(pl.LightningDataModule):
    """Training and validation data."""

    def train_dataloader(self) -> Any:
        return loader(8)

    def val_dataloader(self) -> Any:
        return loader(4)


def test_missing_data_is_named() -> None:
    """Each entry point says which data it has not, and where to put it."""
    for entry, kind in (("fit", "train"), ("validate", "val"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(
            MisconfigurationError, match=rf"{entry}\(\) has no {kind} data.*{kind}_dataloader\(\)"
        ):
            getattr(quiet_trainer(), entry)(Validated())
    with pytest.raises(
        MisconfigurationError, match=r"test\(\) has no test data: none was given, and Data has no"
    ):
        quiet_trainer().test(Validated(), datamodule=Data())


def test_a_hook_that_returns_no_data_is_named() -> None:
    """A train_dataloader that returns None is refused like one that is not there."""

    class Forgets(Tiny):
        def train_dataloader(self) -> Any:
            loader(4)

    with pytest.raises(MisconfigurationError, match="There is no train data"):
        quiet_trainer().fit(Forgets())


def test_data_come_from_one_place() -> None:
    """A data module together with loaders, or two data modules, are refused."""
    for arguments in (
        {"train_dataloaders": loader(4), "datamodule": Data()},
        {"val_dataloaders": loader(4), "datamodule": Data()},
        {"train_dataloaders": Data(), "val_dataloaders": loader(4)},
    ):
        with pytest.raises(MisconfigurationError, match=r"got a datamodule and .*Give one or the other"):
            quiet_trainer().fit(Validated(), **arguments)  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationError, match="two data modules"):
        quiet_trainer().fit(Validated(), Data(), datamodule=Data())
    with pytest.raises(MisconfigurationError, match=r"datamodule=\.\.\.\) got a DataLoader.*pass loaders"):
        quiet_trainer().fit(Validated(), datamodule=loader(4))  # type: ignore[arg-type]


def test_a_data_module_may_stand_where_loaders_do() -> None:
    """A data module is taken as the first argument after the module, and remembered for later calls."""
    trainer, module = quiet_trainer(), Validated()
    data = Data()
    trainer.fit(module, data)
    assert trainer.global_step == 2
    assert trainer.datamodule is data
    assert trainer.validate(verbose=False)[0].keys() == {"val_loss"}


def test_validation_data_need_a_validation_step() -> None:
    """Validation loaders given to fit for a module without validation_step are refused."""
    with pytest.raises(
        MisconfigurationError, match=r"got val_dataloaders, but Tiny has no validation_step\(\)"
    ):
        quiet_trainer().fit(Tiny(), loader(4), loader(4))


@pytest.mark.parametrize("kind", ["train", "val"])
def test_an_empty_loader_is_refused(kind: str) -> None:
    """A loader without a batch is refused with all that explains it, unless its limit is 0."""
    empty = DataLoader(points(3), batch_size=4, drop_last=True)
    given = {"train_dataloaders": loader(4), "val_dataloaders": loader(4), f"{kind}_dataloaders": empty}
    expected = (
        rf"The {kind} loader has 0 batches: DataLoader over TensorDataset of length 3, batch_size=4, "
        rf"drop_last=True, on 1 ranks\. Give it data, or set limit_{kind}_batches=0"
    )
    with pytest.raises(MisconfigurationError, match=expected):
        quiet_trainer().fit(Validated(), **given)
    quiet_trainer(**{f"limit_{kind}_batches": 0}).fit(Validated(), **given)


@pytest.mark.parametrize("source", [points(8), 3, TensorDataset(torch.zeros(2, 1))])
def test_a_data_set_is_no_loader(source: Any) -> None:
    """A data set, or what cannot be iterated, is refused where a loader belongs."""
    with pytest.raises(
        MisconfigurationError, match=rf"data is a {type(source).__name__}, not an iterable of b"
    ):
        quiet_trainer().fit(Tiny(), source)
    with pytest.raises(MisconfigurationError, match="The val data is a"):
        quiet_trainer().fit(Validated(), loader(4), source)


def test_a_share_that_is_no_batch_is_refused() -> None:
    """A share of the batches that rounds down to none is refused with the least that is one."""
    for batches, least in ((3, "0.334"), (40, "0.025")):
        with pytest.raises(
            MisconfigurationError, match=rf"gives 0 of {batches} batches\. Use at least {least},"
        ):
            quiet_trainer(limit_train_batches=0.01).fit(Tiny(), loader(4 * batches))
        trainer = quiet_trainer(limit_train_batches=float(least))
        trainer.fit(Tiny(), loader(4 * batches))
        assert trainer.global_step == 1


class Stream(IterableDataset[Any]):
    """Eight samples and, if told, a length that may be wrong."""

    def __iter__(self) -> Iterator[Any]:
        data = points(8)
        return (data[index] for index in range(8))


def test_a_share_needs_a_length() -> None:
    """A share of batches, or of an epoch, of a loader without a length is refused; numbers work."""
    stream = DataLoader(Stream(), batch_size=2)
    with pytest.raises(
        MisconfigurationError, match=r"limit_train_batches=0\.5\) needs a loader with a length"
    ):
        quiet_trainer(limit_train_batches=0.5).fit(Tiny(), stream)
    with pytest.raises(
        MisconfigurationError, match=r"val_check_interval=0\.5\) needs a loader with a length"
    ):
        quiet_trainer(val_check_interval=0.5).fit(Validated(), stream, loader(4))
    trainer = quiet_trainer(limit_train_batches=3, val_check_interval=2)
    trainer.fit(Validated(), stream, loader(4))
    assert trainer.global_step == 3


def test_a_share_of_a_stream_that_says_its_length_counts() -> None:
    """A share applies to the length that an iterable data set reports."""

    class Sized(Stream):
        def __len__(self) -> int:
            return 8

    trainer = quiet_trainer(limit_train_batches=0.5)
    trainer.fit(Tiny(), DataLoader(Sized(), batch_size=2))
    assert trainer.global_step == 2


def test_a_loader_that_promises_too_much_is_named() -> None:
    """A batch sampler whose length is more than it yields ends training with the two numbers."""

    class Promises:
        def __iter__(self) -> Iterator[list[int]]:
            return iter([[0, 1], [2, 3]])

        def __len__(self) -> int:
            return 5

    data = DataLoader(points(4), batch_sampler=Promises())  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationError, match="promised 5 batches or more and ended after 2"):
        quiet_trainer().fit(Tiny(), data)


def test_validation_more_often_than_possible_is_refused() -> None:
    """val_check_interval beyond the epoch's batches is refused, unless batches count over epochs."""
    with pytest.raises(
        MisconfigurationError, match=r"val_check_interval=3\) is more than the 2 training batches"
    ):
        quiet_trainer(val_check_interval=3).fit(Validated(), loader(8), loader(4))


# ---------------------------------------------------------------- failures in hooks


def module_hooks() -> list[str]:
    """The module's methods that a fit with validation calls."""
    names = [
        name
        for name in vars(ModuleHooks)
        if name.startswith(("on_", "configure_", "optimizer_"))
        and callable(getattr(pl.LightningModule, name))
        and "test" not in name
        and "predict" not in name
    ]
    left_out = {"on_save_checkpoint", "on_load_checkpoint", "configure_callbacks"}
    return [
        *(name for name in names if name not in left_out),
        *("prepare_data", "setup", "training_step", "validation_step", "backward", "lr_scheduler_step"),
        *("train_dataloader", "val_dataloader", "transfer_batch_to_device"),
    ]


def callback_hooks() -> list[str]:
    """The callback's methods that a fit with validation calls."""
    return [
        name
        for name in vars(Callback)
        if name.startswith("on_")
        and not any(word in name for word in ("test", "predict", "checkpoint", "exception"))
    ]


class Complete(Validated):
    """A module that needs nothing from outside."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def train_dataloader(self) -> Any:
        return loader(8)

    def val_dataloader(self) -> Any:
        return loader(4)


class Witness(pl.Callback):
    """Sees what failed, and in which state."""

    def __init__(self) -> None:
        self.seen: list[BaseException] = []
        self.torn_down = 0

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.seen.append(exception)
        raise RuntimeError("a failure while telling of a failure")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.torn_down += 1


class Planned(Exception):
    """Nobody else raises it."""


def assert_nothing_attached(trainer: pl.Trainer, module: Any, witness: Witness, error: Exception) -> None:
    """The failure was told once, and nothing of the run is left that holds data or takes logs."""
    assert witness.seen == [error]
    assert witness.torn_down == 1
    assert trainer.interrupted
    assert (trainer.state.stage, trainer.training, trainer.sanity_checking) == ("", False, False)
    assert module._log_sink is None
    engine: Any = trainer.engine
    assert engine.train_slots.batch is None
    assert engine.train_slots.table is None
    if engine.feed is not None:
        assert engine.feed.batch is None
        assert engine.feed._iterator is None
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("hook", module_hooks())
def test_an_exception_in_a_hook_of_the_module_passes_through(hook: str) -> None:
    """Whatever hook fails, its own exception arrives, nothing stays attached, and the trainer works again."""
    error = Planned(hook)

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise error

    failing = type("Failing", (Complete,), {hook: fail})()
    witness = Witness()
    trainer = quiet_trainer(witness, num_sanity_val_steps=0, precision="bf16-mixed")
    modes = {name: item.training for name, item in failing.named_modules()}
    with pytest.raises(Planned) as caught:
        trainer.fit(failing)
    assert caught.value is error
    assert_nothing_attached(trainer, failing, witness, error)
    assert {name: item.training for name, item in failing.named_modules()} == modes

    trainer.fit(Complete())
    assert trainer.state.status == "finished"


@pytest.mark.parametrize("hook", callback_hooks())
def test_an_exception_in_a_hook_of_a_callback_passes_through(hook: str) -> None:
    """A callback that fails ends the call like the module's own failure, in the sanity check too."""
    error = Planned(hook)

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise error

    failing = type("Failing", (pl.Callback,), {hook: fail})()
    witness, module = Witness(), Complete()
    trainer = quiet_trainer(failing, witness, num_sanity_val_steps=1)
    with pytest.raises(Planned) as caught:
        trainer.fit(module)
    assert caught.value is error
    assert_nothing_attached(trainer, module, witness, error)


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_an_exception_in_evaluation_passes_through(entry: str) -> None:
    """A failing step of an evaluation leaves modes, gradients and metrics in order."""
    error = Planned(entry)

    class Fails(Complete):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            raise error

        test_step = predict_step = validation_step

    witness, module = Witness(), Fails()
    module.net[2].eval()
    trainer = quiet_trainer(witness)
    with pytest.raises(Planned) as caught:
        getattr(trainer, entry)(module, loader(4))
    assert caught.value is error
    assert_nothing_attached(trainer, module, witness, error)
    assert [item.training for item in module.net] == [True, True, False, True]


def test_ctrl_c_arrives_as_itself() -> None:
    """KeyboardInterrupt in the middle of training runs on_exception and teardown, and is raised."""
    seen: list[str] = []

    class Interrupts(Tiny):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            raise KeyboardInterrupt

    class Looks(pl.Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            seen.append(type(exception).__name__)

        def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
            seen.append(stage)

    trainer = quiet_trainer(Looks())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Interrupts(), loader(8))
    assert seen == ["KeyboardInterrupt", "fit"]
    assert trainer.interrupted


def test_loggers_learn_of_a_failure() -> None:
    """finalize is called with "failed", and a logger's own failure does not hide the first one."""

    class Fails(pl.loggers.Logger):
        name = "fails"
        version = 0
        ends: list[str] = []  # noqa: RUF012

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            raise Planned("in the logger")

        def log_hyperparams(self, params: Any, metrics: Any = None) -> None:
            pass

        def finalize(self, status: str) -> None:
            self.ends.append(status)
            raise RuntimeError("cannot finalize either")

    class Logs(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", 1.0)
            return loss_of(self.net, batch)

    logger = Fails()
    with pytest.raises(Planned, match="in the logger"):
        quiet_trainer(logger=logger, log_every_n_steps=1).fit(Logs(), loader(4))
    assert logger.ends == ["failed"]


def test_every_error_says_what_to_do() -> None:
    """A message of ours has an instruction: a sentence that begins with a verb."""
    messages: list[str] = []
    for call in (
        lambda: pl.Trainer(max_epochs=-5),
        lambda: quiet_trainer().fit(Tiny()),
        lambda: quiet_trainer().fit(Tiny, loader(4)),  # type: ignore[arg-type]
        lambda: quiet_trainer().fit(Tiny(lambda parameters: "adam"), loader(4)),
    ):
        with pytest.raises(MisconfigurationError) as caught:
            call()
        messages.append(str(caught.value))
    verbs = re.compile(r"\. (Use|Give|Pass|Return|Define|Leave|Put|Log)\b")
    assert [message for message in messages if not verbs.search(message)] == []


@pytest.mark.parametrize("returned", [3, [3], "x", Callback])
def test_callbacks_that_a_module_configures_are_callbacks(returned: Any) -> None:
    """What configure_callbacks returns besides callbacks is named."""

    class Configures(Tiny):
        def configure_callbacks(self) -> Any:
            return returned

    with pytest.raises(
        MisconfigurationError, match=r"Configures\.configure_callbacks returned .* no Callback"
    ):
        quiet_trainer().fit(Configures(), loader(8))


@pytest.mark.parametrize("argument", ["scaling_config", "placement_group"])
def test_objects_of_ray_are_told_from_others(argument: str) -> None:
    """What is no object of Ray's is refused where the Trainer is made."""
    with pytest.raises(MisconfigurationError, match=rf"Trainer\({argument}=3\) is a int. Give .*ray\."):
        quiet_trainer(**{argument: 3})


def test_an_infinite_interval_is_refused() -> None:
    """val_check_interval has no way of saying never but its siblings; infinity is refused."""
    with pytest.raises(MisconfigurationError, match=r"Trainer\(val_check_interval=inf\)"):
        quiet_trainer(val_check_interval=float("inf"))


def test_a_hook_that_fails_after_a_failure_is_a_note_of_it() -> None:
    """An exception in on_exception does not hide the one before, and is told with it."""

    class Falls(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            raise KeyError("first")

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            raise OSError("no space left")

    with pytest.raises(KeyError, match="first") as caught:
        quiet_trainer(Falls()).fit(Tiny(), loader(8))
    assert caught.value.__notes__ == ["Afterwards a hook failed too: OSError: no space left"]
