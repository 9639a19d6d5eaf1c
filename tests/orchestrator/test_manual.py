"""Manual optimization computes what the same lines compute in a plain loop, and counts as Lightning does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.tiny import (
    Tiny,
    assert_equal_weights,
    loader,
    loss_of,
    network,
    quiet_trainer,
)


class Manual(Tiny):
    """Steps one optimizer by hand."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss_of(self.net, batch))
        optimizer.step()


class Gan(pl.LightningModule):
    """A generator and a discriminator, trained in turn on the same batch.

    Args:
        toggles: Only one side's parameters need gradients at a time.
    """

    def __init__(self, toggles: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.toggles = toggles
        self.generator, self.discriminator = network(dropout=0.2), nn.Linear(1, 1)
        with torch.no_grad():
            self.discriminator.weight.fill_(0.5)
            self.discriminator.bias.fill_(0.1)

    def losses(self, batch: Any, which: int) -> Tensor:
        inputs, targets = batch
        made = self.generator(inputs)
        if which == 0:
            return nn.functional.softplus(-self.discriminator(made)).mean()
        real, fake = self.discriminator(targets), self.discriminator(made.detach())
        return (nn.functional.softplus(-real) + nn.functional.softplus(fake)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for which, optimizer in enumerate(self.optimizers()):
            if self.toggles:
                self.toggle_optimizer(optimizer)
            loss = self.losses(batch, which)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            if self.toggles:
                self.untoggle_optimizer(optimizer)
            self.log(("g", "d")[which], loss)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.generator.parameters(), lr=0.02),
            torch.optim.Adam(self.discriminator.parameters(), lr=0.01),
        )


@pytest.mark.parametrize("toggles", [True, False])
def test_a_gan_equals_the_plain_loop(toggles: bool) -> None:
    """Two optimizers stepped in turn, toggled or not, give the weights of the plain loop, to the bit."""
    module, plain, data = Gan(toggles), Gan(toggles), loader(30)
    optimizers = plain.configure_optimizers()
    torch.manual_seed(4)
    for _ in range(2):
        for batch in data:
            for which, optimizer in enumerate(optimizers):
                loss = plain.losses(batch, which)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    torch.manual_seed(4)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, data)
    assert_equal_weights(module, plain)
    assert all(item.requires_grad for item in module.parameters())
    assert trainer.global_step == 2 * 2 * 8
    assert trainer.batches_seen == 2 * 8


def test_every_optimizers_step_counts_and_the_limit_is_not_overrun() -> None:
    """global_step counts each step of each optimizer, and max_steps ends training once it is reached."""
    trainer = quiet_trainer(max_epochs=-1, max_steps=5)
    trainer.fit(Gan(), loader(40))
    assert trainer.global_step == 6
    assert trainer.batches_seen == 3


def test_steps_save_checkpoints(tmp_path: Path) -> None:
    """every_n_train_steps counts optimizer steps in manual optimization too."""
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    quiet_trainer(saver, enable_checkpointing=True).fit(Gan(), loader(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=4.ckpt", "step=8.ckpt"]


class Records(pl.loggers.Logger):  # type: ignore[name-defined]
    """Keeps what it is given."""

    name, version = "records", 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, set[str]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.lines.append((step, set(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to keep."""


def test_log_points_count_batches() -> None:
    """log_every_n_steps and the x-axis count batches where training_step makes any number of steps."""
    records = Records()
    quiet_trainer(logger=records, log_every_n_steps=3).fit(Gan(), loader(32))
    assert records.lines == [(2, {"g", "d", "epoch"}), (5, {"g", "d", "epoch"})]


def test_hooks_run_around_backward_and_before_the_step() -> None:
    """Callback and module see backward and step; zeroing and clipping hooks are not called."""
    order: list[str] = []

    class Watches(pl.Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
            order.append("C.before_backward")

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            order.append("C.after_backward")

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            order.append(f"C.before_step {type(optimizer).__name__}")

        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            order.append("C.before_zero_grad")

    class Hooked(Manual):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            order.append(f"M.backward {sorted(kwargs)}")
            loss.backward(*args, **kwargs)

        def on_after_backward(self) -> None:
            self.log("inside", 1.0)
            order.append("M.after_backward")

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            order.append("M.before_step")

        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            order.append("M.clip")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()

            def closure() -> Tensor:
                order.append("closure")
                optimizer.zero_grad()
                loss = loss_of(self.net, batch)
                self.manual_backward(loss, retain_graph=True)
                return loss

            optimizer.step(closure)
            self.log("after", 1.0)
            return "anything"

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            order.append(f"outputs {outputs!r}")

    trainer = quiet_trainer(Watches())
    trainer.fit(Hooked(), loader(4))
    assert order == [
        "closure",
        "C.before_backward",
        "M.backward ['retain_graph']",
        "C.after_backward",
        "M.after_backward",
        "C.before_step SGD",
        "M.before_step",
        "outputs 'anything'",
    ]
    assert trainer.callback_metrics.keys() == {"inside", "after"}


@pytest.mark.parametrize(
    ("returned", "seen"), [(None, {}), ({"loss": 2, "x": 1}, {"loss": 2, "x": 1}), ([3], [3])]
)
def test_training_step_may_return_anything(returned: Any, seen: Any) -> None:
    """What training_step returns is handed to hooks, nothing as an empty dictionary."""
    found: list[Any] = []

    class Returns(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return returned

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            found.append(outputs)

    quiet_trainer().fit(Returns(), loader(4))
    assert found == [seen]


def test_schedulers_are_the_modules_to_step() -> None:
    """The trainer steps no scheduler, and asks for no metric that a plateau would watch."""

    class Schedules(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)
            if batch_idx == 0:
                self.lr_schedulers()[0].step()

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        every_step = {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step"}
        return [optimizer], [every_step, ReduceLROnPlateau(optimizer)]

    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(Schedules(configure), loader(16))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125


def test_lbfgs_by_closure_equals_the_plain_loop() -> None:
    """An optimizer that runs its closure several times does so within one step."""

    def configure(parameters: Any) -> Any:
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=4, line_search_fn="strong_wolfe")

    class Closes(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(self.net, batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)

    module, net, data = Closes(configure), network(), loader(24)
    plain = configure(net.parameters())
    for batch in data:

        def closure(batch: Any = batch) -> Tensor:
            plain.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            return loss

        plain.step(closure)
    trainer = quiet_trainer()
    trainer.fit(module, data)
    assert_equal_weights(module.net, net)
    assert trainer.global_step == 6


class Clips(Manual):
    """Accumulates two batches, and clips what they give."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        self.manual_backward(loss_of(self.net, batch) / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["32", "16-mixed", "bf16-mixed"])
def test_accumulation_and_clipping_by_hand_equal_the_plain_loop(precision: str) -> None:
    """Clipping by hand sees unscaled gradients, and the scaler follows each step once."""
    module, net, data = Clips(), network(), loader(38)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "16-mixed")
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(precision, torch.float32)
    for index, batch in enumerate(data):
        with torch.autocast("cpu", dtype=dtype, enabled=precision != "32"):
            loss = loss_of(net, batch) / 2
        scaler.scale(loss).backward()
        if index % 2:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    trainer = quiet_trainer(precision=precision)
    trainer.fit(module, data)
    assert_equal_weights(module.net, net)
    if precision == "16-mixed":
        assert trainer.scaler is not None
        assert trainer.scaler.state_dict() == scaler.state_dict()
    else:
        assert trainer.scaler is None


def test_fp16_unscales_two_optimizers_by_the_scale_of_their_backward() -> None:
    """Where both backwards come before both steps, the scale does not change in between."""

    class Both(Gan):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizers = self.optimizers()
            for which in (0, 1):
                self.optimizers()[which].zero_grad()
            for which in (0, 1):
                with optimizers[which].toggle_model():
                    self.manual_backward(self.losses(batch, which))
            for optimizer in optimizers:
                self.clip_gradients(optimizer, 0.5)
                optimizer.step()

    seen: list[float] = []

    class Watches(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            grows = {**trainer.scaler.state_dict(), "scale": 16.0, "growth_interval": 1}
            trainer.scaler.load_state_dict(grows)  # it doubles with every update

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append(max(float(p.grad.abs().max()) for p in optimizer.param_groups[0]["params"]))

    trainer = quiet_trainer(Watches(), precision="16-mixed")
    trainer.fit(Both(), loader(8))
    assert len(seen) == 4
    assert max(seen) <= 0.5 + 1e-3
    assert trainer.scaler is not None
    assert trainer.scaler.get_scale() == 16.0 * 4


def test_an_optimizer_of_nobodys_is_refused() -> None:
    """Clipping the gradients of an optimizer that configure_optimizers did not return says so."""

    class Strays(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.clip_gradients(torch.optim.SGD(self.parameters(), lr=0.1), 1.0)

    with pytest.raises(MisconfigurationError, match="SGD is used that configure_optimizers did not return"):
        quiet_trainer().fit(Strays(), loader(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate_grad_batches": 2}, r"accumulate_grad_batches=2\).*step in every n-th"),
        ({"gradient_clip_val": 0.5}, r"gradient_clip_val=0\.5\).*self\.clip_gradients\(optimizer"),
    ],
)
def test_what_only_automatic_optimization_follows_is_refused(arguments: Any, message: str) -> None:
    """Arguments that training_step would have to obey are refused before anything starts."""
    with pytest.raises(MisconfigurationError, match=message):
        quiet_trainer(**arguments).fit(Manual(), loader(4))


def test_without_a_trainer_again_it_is_the_optimizer_alone() -> None:
    """After training self.optimizers() is the user's object, and the one that was kept steps as it does."""
    kept: list[Any] = []

    class Keeps(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            kept.append(self.optimizers())

    module, trainer = Keeps(), quiet_trainer()
    trainer.fit(module, loader(4))
    assert module.optimizers() is trainer.optimizers[0]
    kept[0].step()
    assert trainer.global_step == 0


class Saves(pl.Callback):
    """Saves after each batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}-{batch_idx}.ckpt")


class Accumulates(Gan):
    """The discriminator steps after each batch, the generator after every third of the whole run."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        generator, discriminator = self.optimizers()
        with discriminator.toggle_model():
            discriminator.zero_grad()
            self.manual_backward(self.losses(batch, 1))
            discriminator.step()
        with generator.toggle_model():
            self.manual_backward(self.losses(batch, 0) / 3)
            if (self.current_epoch * 4 + batch_idx) % 3 == 2:
                generator.step()
                generator.zero_grad()


@pytest.mark.parametrize("precision", ["32", "16-mixed"])
def test_going_on_in_mid_epoch_equals_never_having_stopped(tmp_path: Path, precision: str) -> None:
    """From any batch on, also with gradients that have come together, the rest of the run is the same."""
    torch.manual_seed(6)
    whole, trainer = Accumulates(), quiet_trainer(Saves(tmp_path), max_epochs=2, precision=precision)
    trainer.fit(whole, loader(16, shuffle=True))
    for path in ("0-0", "0-1", "0-2", "0-3", "1-0", "1-2"):
        torch.manual_seed(99)
        resumed, again = Accumulates(), quiet_trainer(max_epochs=2, precision=precision)
        again.fit(resumed, loader(16, shuffle=True), ckpt_path=tmp_path / f"{path}.ckpt")
        assert_equal_weights(resumed, whole)
        assert again.global_step == trainer.global_step == 10
        for mine, theirs in zip(again.optimizers, trainer.optimizers, strict=True):
            for key, state in theirs.state_dict()["state"].items():
                for name, value in state.items():
                    assert torch.equal(mine.state_dict()["state"][key][name], value), (path, key, name)


def test_a_checkpoint_holds_gradients_only_where_they_are_needed(tmp_path: Path) -> None:
    """After a step nothing is left to be kept, although the gradients have not been zeroed."""
    quiet_trainer(Saves(tmp_path)).fit(Manual(), loader(8))
    content = torch.load(tmp_path / "0-0.ckpt", weights_only=True)
    assert content["orchestrator"]["ranks"][0]["gradients"] == {}
