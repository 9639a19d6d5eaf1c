"""One process computes what the plain PyTorch loop computes: to the bit, and from the same random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from orchestrator.errors import MisconfigurationError
from tests.orchestrator.tiny import (
    FEATURES,
    Tiny,
    Validated,
    assert_equal_weights,
    loader,
    loss_of,
    network,
    quiet_trainer,
    sgd,
)

EPOCHS = 2
LENGTH = 38  # ten batches of four, the last of two: twenty steps in two epochs

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


def plain_loop(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: DataLoader[Any],
    *,
    accumulate: int = 1,
    clip: Callable[[Any], Any] = lambda parameters: None,
    dtype: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    loss_factor: Callable[[int], float] = lambda step: 1.0,
    after_step: Callable[[], None] = lambda: None,
    after_epoch: Callable[[], None] = lambda: None,
    validation: DataLoader[Any] | None = None,
    validate_every: int = 0,
) -> None:
    """What a user of plain PyTorch writes: two epochs over `data`."""
    scaler = torch.amp.GradScaler("cpu", enabled=False) if scaler is None else scaler
    batches = 0
    for _ in range(EPOCHS):
        for index, batch in enumerate(data):
            window = min(accumulate, len(data) - index // accumulate * accumulate)
            with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
                loss = loss_of(net, batch)
                if loss_factor(batches) != 1.0:
                    loss = loss * loss_factor(batches)
            batches += 1
            scaler.scale(loss / window if window > 1 else loss).backward()
            if (index + 1) % accumulate == 0 or index + 1 == len(data):
                scaler.unscale_(optimizer)
                clip(list(net.parameters()))
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                after_step()
            if validation is not None and (index + 1) % validate_every == 0:
                net.eval()
                with torch.no_grad():
                    for held_out in validation:
                        loss_of(net, held_out)
                net.train()
        after_epoch()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_equal_the_plain_loop(name: str) -> None:
    """Weights and optimizer state after twenty steps are those of the plain loop, to the bit."""
    module, net, data = Tiny(OPTIMIZERS[name]), network(), loader(LENGTH)
    optimizer = OPTIMIZERS[name](net.parameters())
    plain_loop(net, optimizer, data)

    trainer = quiet_trainer(max_epochs=EPOCHS)
    trainer.fit(module, data)

    assert trainer.global_step == 20
    assert_equal_weights(module.net, net)
    ours, theirs = trainer.optimizers[0].state_dict()["state"], optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for key, state in theirs.items():
        for entry, value in state.items():
            assert value is None or torch.equal(ours[key][entry], value), (key, entry)


@pytest.mark.parametrize("accumulate", [2, 3, 4, 10, 40])
def test_an_incomplete_last_window_is_divided_by_its_own_size(accumulate: int) -> None:
    """Accumulating gradients averages over the batches that a window really has."""
    module, net, data = Tiny(OPTIMIZERS["adam"]), network(), loader(LENGTH)
    plain_loop(net, OPTIMIZERS["adam"](net.parameters()), data, accumulate=accumulate)

    trainer = quiet_trainer(max_epochs=EPOCHS, accumulate_grad_batches=accumulate)
    trainer.fit(module, data)

    assert trainer.global_step == EPOCHS * -(-10 // accumulate)
    assert_equal_weights(module.net, net)


@pytest.mark.parametrize(
    ("algorithm", "clip"),
    [
        ("norm", partial(nn.utils.clip_grad_norm_, max_norm=0.05)),
        (None, partial(nn.utils.clip_grad_norm_, max_norm=0.05)),
        ("value", partial(nn.utils.clip_grad_value_, clip_value=0.05)),
    ],
)
def test_clipping_is_torchs_own(algorithm: str | None, clip: Callable[[Any], Any]) -> None:
    """Gradients are clipped by norm, the default, or by value, between backward and step."""
    module, net, data = Tiny(), network(), loader(LENGTH)
    plain_loop(net, OPTIMIZERS["sgd"](net.parameters()), data, accumulate=2, clip=clip)
    unclipped = Tiny()
    quiet_trainer(max_epochs=EPOCHS, accumulate_grad_batches=2).fit(unclipped, data)

    quiet_trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=2,
        gradient_clip_val=0.05,
        gradient_clip_algorithm=algorithm,
    ).fit(module, data)

    assert_equal_weights(module.net, net)
    assert not torch.equal(module.net[0].weight, unclipped.net[0].weight)


def test_bf16_is_autocast_around_the_step_only() -> None:
    """In bf16-mixed the forward pass runs under autocast, backward outside of it, on fp32 weights."""
    module, net, data = Tiny(OPTIMIZERS["adamw"]), network(), loader(LENGTH)
    plain_loop(net, OPTIMIZERS["adamw"](net.parameters()), data, accumulate=3, dtype=torch.bfloat16)

    quiet_trainer(max_epochs=EPOCHS, accumulate_grad_batches=3, precision="bf16-mixed").fit(module, data)

    assert module.net[0].weight.dtype is torch.float32
    assert_equal_weights(module.net, net)


@pytest.mark.parametrize("clip_value", [None, 0.05])
def test_fp16_scales_the_loss_and_skips_a_step_that_overflows(clip_value: float | None) -> None:
    """In 16-mixed a step whose gradients overflow changes no weight and halves the scale, as in the loop."""

    def factor(batch: int) -> float:
        return 1e38 if batch == 5 else 1.0

    class Overflows(Tiny):
        def __init__(self) -> None:
            super().__init__(OPTIMIZERS["sgd"])
            self.batches = 0
            self.skipped: list[int] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = loss_of(self.net, batch)
            if factor(self.batches) != 1.0:
                loss = loss * factor(self.batches)
            self.before = self.net[0].weight.detach().clone()
            return loss

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if torch.equal(self.before, self.net[0].weight):
                self.skipped.append(self.batches)
            self.batches += 1

    def clip(parameters: Any) -> None:
        if clip_value is not None:
            nn.utils.clip_grad_norm_(parameters, clip_value)

    module, net, data = Overflows(), network(), loader(LENGTH)
    scaler = torch.amp.GradScaler("cpu")
    scales = [scaler.get_scale()]
    plain_loop(
        net,
        OPTIMIZERS["sgd"](net.parameters()),
        data,
        dtype=torch.float16,
        scaler=scaler,
        loss_factor=factor,
        clip=clip,
        after_step=lambda: scales.append(scaler.get_scale()),
    )

    trainer = quiet_trainer(max_epochs=EPOCHS, precision="16-mixed", gradient_clip_val=clip_value)
    trainer.fit(module, data)

    assert 5 in module.skipped
    assert module.skipped == [step for step in range(20) if scales[step + 1] == scales[step] / 2]
    assert_equal_weights(module.net, net)
    engine = trainer.engine
    assert engine is not None
    assert engine.precision.state_dict() == scaler.state_dict()
    assert trainer.global_step == 20


def test_fp16_hooks_before_the_step_see_unscaled_gradients() -> None:
    """on_before_optimizer_step gets gradients as they would be in fp32, not multiplied by the scale."""

    class Looks(Tiny):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            gradient = self.net[0].weight.grad
            assert gradient is not None
            self.largest = float(gradient.abs().max())

    module = Looks()
    quiet_trainer(precision="16-mixed").fit(module, loader(4))
    assert 0 < module.largest < 10


def test_step_lr_counts_epochs() -> None:
    """A scheduler without an interval steps once an epoch, after its last batch."""

    def configure(parameters: Any) -> Any:
        optimizer = OPTIMIZERS["momentum"](parameters)
        return [optimizer], [StepLR(optimizer, 1, gamma=0.5)]

    module, net, data = Tiny(configure), network(), loader(LENGTH)
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    plain_loop(net, optimizer, data, after_epoch=scheduler.step)

    trainer = quiet_trainer(max_epochs=EPOCHS)
    trainer.fit(module, data)

    assert_equal_weights(module.net, net)
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == scheduler.get_last_lr() == [0.0125]


def test_one_cycle_counts_optimizer_steps() -> None:
    """A scheduler with interval "step" steps after each optimizer step, not after each batch."""

    def schedule(optimizer: torch.optim.Optimizer) -> OneCycleLR:
        return OneCycleLR(optimizer, max_lr=0.2, total_steps=EPOCHS * 4)

    def configure(parameters: Any) -> Any:
        optimizer = OPTIMIZERS["momentum"](parameters)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule(optimizer), "interval": "step"},
        }

    module, net, data = Tiny(configure), network(), loader(LENGTH)
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    scheduler = schedule(optimizer)
    plain_loop(net, optimizer, data, accumulate=3, after_step=scheduler.step)

    quiet_trainer(max_epochs=EPOCHS, accumulate_grad_batches=3).fit(module, data)

    assert_equal_weights(module.net, net)


def test_a_step_scheduler_with_a_frequency_counts_optimizer_steps_over_epochs() -> None:
    """Frequency 3 means every third optimizer step of training, whatever the epochs' lengths."""

    def configure(parameters: Any) -> Any:
        optimizer = OPTIMIZERS["sgd"](parameters)
        scheduler = StepLR(optimizer, 1, gamma=0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 3}]

    module, net, data = Tiny(configure), network(), loader(LENGTH)
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    scheduler = StepLR(optimizer, 1, gamma=0.9)
    steps = 0

    def after_step() -> None:
        nonlocal steps
        steps += 1
        if steps % 3 == 0:
            scheduler.step()

    plain_loop(net, optimizer, data, after_step=after_step)
    quiet_trainer(max_epochs=EPOCHS).fit(module, data)
    assert_equal_weights(module.net, net)


def test_plateau_gets_the_epochs_metric() -> None:
    """ReduceLROnPlateau sees the metric of the epoch that has just ended."""

    class Logs(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("watched", 1.0 + batch_idx, on_step=False, on_epoch=True)
            return loss_of(self.net, batch)

    def configure(parameters: Any) -> Any:
        optimizer = OPTIMIZERS["sgd"](parameters)
        scheduler = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "watched"}

    module, net, data = Logs(configure), network(), loader(LENGTH)
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    scheduler = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    mean = sum((1.0 + index) * (4 if index < 9 else 2) for index in range(10)) / LENGTH
    plain_loop(net, optimizer, data, after_epoch=lambda: scheduler.step(torch.tensor(mean)))

    trainer = quiet_trainer(max_epochs=EPOCHS)
    trainer.fit(module, data)

    assert_equal_weights(module.net, net)
    assert trainer.lr_scheduler_configs[0].scheduler.state_dict() == scheduler.state_dict()
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffling_and_dropout_draw_the_plain_loops_random_numbers(workers: int) -> None:
    """A shuffling loader and dropout take their numbers from the global generator as in the plain loop."""
    data = loader(LENGTH, shuffle=True, num_workers=workers)
    module, net = Tiny(OPTIMIZERS["adam"], dropout=0.4), network(0.4)
    torch.manual_seed(17)
    plain_loop(net, OPTIMIZERS["adam"](net.parameters()), data)
    state = torch.get_rng_state()

    torch.manual_seed(17)
    quiet_trainer(max_epochs=EPOCHS).fit(module, data)

    assert_equal_weights(module.net, net)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loaders_own_generator_is_drawn_from_as_in_the_plain_loop(workers: int) -> None:
    """A sampler with a generator of its own draws once more at an epoch's end: training reads up to there."""
    orders = [torch.Generator().manual_seed(5) for _ in range(4)]
    train, plain = (
        loader(LENGTH, shuffle=True, num_workers=workers, generator=order) for order in orders[:2]
    )
    held_out, plain_held_out = (loader(12, shuffle=True, generator=order) for order in orders[2:])
    module, net = Validated(OPTIMIZERS["adam"]), network()
    plain_loop(net, OPTIMIZERS["adam"](net.parameters()), plain, validation=plain_held_out, validate_every=5)

    quiet_trainer(max_epochs=EPOCHS, val_check_interval=5, num_sanity_val_steps=0).fit(
        module, train, held_out
    )

    assert_equal_weights(module.net, net)
    states = [order.get_state() for order in orders]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[2], states[3])


def test_validation_in_between_changes_nothing() -> None:
    """Training with validation every three batches gives the weights of training without."""
    module, net, data = Validated(OPTIMIZERS["momentum"]), network(), loader(LENGTH)
    plain_loop(net, OPTIMIZERS["momentum"](net.parameters()), data, accumulate=2)

    quiet_trainer(
        max_epochs=EPOCHS, accumulate_grad_batches=2, val_check_interval=3, num_sanity_val_steps=2
    ).fit(module, data, loader(12))

    assert_equal_weights(module.net, net)


def test_validation_draws_what_it_draws_in_the_plain_loop() -> None:
    """With dropout and shuffling, a fit with validation equals the plain loop with validation."""
    data, held_out = loader(LENGTH, shuffle=True), loader(12, shuffle=True)
    module, net = Validated(OPTIMIZERS["adam"], dropout=0.4), network(0.4)
    torch.manual_seed(17)
    plain_loop(net, OPTIMIZERS["adam"](net.parameters()), data, validation=held_out, validate_every=5)

    torch.manual_seed(17)
    quiet_trainer(max_epochs=EPOCHS, val_check_interval=5, num_sanity_val_steps=2).fit(module, data, held_out)

    assert_equal_weights(module.net, net)


def test_lbfgs_runs_its_closure_as_in_the_plain_loop() -> None:
    """An optimizer that calls the forward pass itself gets a closure that does what a plain closure does."""
    configure = partial(torch.optim.LBFGS, lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    module, net, data = Tiny(configure), network(), loader(LENGTH)
    optimizer = configure(net.parameters())
    for _ in range(EPOCHS):
        for batch in data:

            def closure(batch: Any = batch) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(net, batch)
                loss.backward()
                return loss

            optimizer.step(closure)

    trainer = quiet_trainer(max_epochs=EPOCHS)
    trainer.fit(module, data)

    assert trainer.global_step == 20
    assert_equal_weights(module.net, net)


def test_lbfgs_with_accumulation_is_refused() -> None:
    """An optimizer that evaluates one batch several times a step cannot accumulate several batches."""
    module = Tiny(partial(torch.optim.LBFGS, lr=0.5))
    with pytest.raises(MisconfigurationError, match=r"accumulate_grad_batches=2\) and LBFGS"):
        quiet_trainer(accumulate_grad_batches=2).fit(module, loader(8))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_overridden_optimizer_step_gets_a_closure_that_does_the_rest(accumulate: int) -> None:
    """optimizer_step may set the rate and must call the closure: forward, backward and clipping run in it."""

    class WarmsUp(Tiny):
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer, optimizer_closure: Any = None
        ) -> None:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 + self.global_step)
            optimizer.step(closure=optimizer_closure)

    module, net, data = WarmsUp(OPTIMIZERS["momentum"]), network(), loader(LENGTH)
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    steps = 0

    def clip(parameters: Any) -> None:
        nonlocal steps
        steps += 1
        nn.utils.clip_grad_norm_(parameters, 0.05)
        optimizer.param_groups[0]["lr"] = 0.01 * steps

    plain_loop(net, optimizer, data, accumulate=accumulate, clip=clip)
    quiet_trainer(max_epochs=EPOCHS, accumulate_grad_batches=accumulate, gradient_clip_val=0.05).fit(
        module, data
    )
    assert_equal_weights(module.net, net)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_fp16_goes_with_an_overridden_optimizer_step(accumulate: int) -> None:
    """optimizer.step(closure) runs the closure, unscales, clips, and lets the scaler step: the plain loop."""

    class Own(Tiny):
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer, optimizer_closure: Any = None
        ) -> None:
            assert isinstance(optimizer, torch.optim.SGD)
            optimizer.step(closure=optimizer_closure)

    module, net, data = Own(OPTIMIZERS["momentum"]), network(), loader(LENGTH)
    scaler = torch.amp.GradScaler("cpu")
    plain_loop(
        net,
        OPTIMIZERS["momentum"](net.parameters()),
        data,
        accumulate=accumulate,
        dtype=torch.float16,
        scaler=scaler,
        clip=partial(nn.utils.clip_grad_norm_, max_norm=0.05),
    )
    trainer = quiet_trainer(
        max_epochs=EPOCHS, accumulate_grad_batches=accumulate, precision="16-mixed", gradient_clip_val=0.05
    )
    trainer.fit(module, data)
    assert_equal_weights(module.net, net)
    assert trainer.scaler is not None
    assert trainer.scaler.state_dict() == scaler.state_dict()


def test_fp16_goes_with_a_fused_optimizer() -> None:
    """A fused optimizer takes the scaler's scale itself, also where hooks have had gradients unscaled."""
    norms: list[float] = []

    class Watches(Tiny):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            norms.append(float(self.net[0].weight.grad.norm()))  # type: ignore[union-attr, operator]

    fused = partial(torch.optim.Adam, lr=0.01, fused=True)
    watched, plain, net, data = Watches(fused), Tiny(fused), network(), loader(LENGTH)
    plain_loop(net, fused(net.parameters()), data, dtype=torch.float16, scaler=torch.amp.GradScaler("cpu"))
    for module in (watched, plain):
        quiet_trainer(max_epochs=EPOCHS, precision="16-mixed").fit(module, data)
        assert_equal_weights(module.net, net)
    assert sorted(norms)[len(norms) // 2] < 10  # not times the scale, 65536


def test_overridden_backward_zeroing_and_clipping_replace_the_built_in_ones() -> None:
    """backward, optimizer_zero_grad and configure_gradient_clipping of the module run instead of ours."""

    class Own(Tiny):
        def __init__(self) -> None:
            super().__init__(OPTIMIZERS["sgd"])
            self.calls: list[str] = []

        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            self.calls.append("backward")
            (loss * 3).backward()

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
            self.calls.append(f"zero {epoch} {batch_idx}")
            optimizer.zero_grad(set_to_none=False)

        def configure_gradient_clipping(
            self,
            optimizer: torch.optim.Optimizer,
            gradient_clip_val: float | None = None,
            gradient_clip_algorithm: str | None = None,
        ) -> None:
            self.calls.append(f"clip {gradient_clip_val} {gradient_clip_algorithm}")
            assert gradient_clip_val is not None
            self.clip_gradients(optimizer, gradient_clip_val * 0.1, gradient_clip_algorithm)

    module, net, data = Own(), network(), loader(LENGTH)
    plain_loop(
        net,
        OPTIMIZERS["sgd"](net.parameters()),
        data,
        loss_factor=lambda batch: 3.0,
        clip=partial(nn.utils.clip_grad_value_, clip_value=0.5 * 0.1),
    )

    quiet_trainer(max_epochs=EPOCHS, gradient_clip_val=0.5, gradient_clip_algorithm="value").fit(module, data)

    assert_equal_weights(module.net, net)
    assert module.calls[:3] == ["zero 0 0", "backward", "clip 0.5 value"]
    assert module.calls[-3:] == ["zero 1 9", "backward", "clip 0.5 value"]


def test_a_batch_whose_loss_is_none_adds_no_gradient() -> None:
    """training_step may return None to leave a batch out; the window's other batches still count."""

    class Skips(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else loss_of(self.net, batch)

    module, net, data = Skips(), network(), loader(16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for index, batch in enumerate(data):
        if index % 2 == 0:
            (loss_of(net, batch) / 2).backward()
        else:
            optimizer.step()
            optimizer.zero_grad()

    quiet_trainer(accumulate_grad_batches=2).fit(module, data)

    assert_equal_weights(module.net, net)


def test_the_users_objects_are_not_changed() -> None:
    """The optimizer is the user's own object, with the methods of its class, and the loader is untouched."""
    built: list[torch.optim.Optimizer] = []

    def configure(parameters: Any) -> torch.optim.Optimizer:
        built.append(torch.optim.AdamW(parameters, lr=0.01))
        return built[-1]

    data = loader(LENGTH, shuffle=True)
    sampler, before = data.sampler, set(vars(data))
    trainer = quiet_trainer()
    trainer.fit(Tiny(configure), data)

    assert trainer.optimizers[0] is built[0]
    assert type(built[0]) is torch.optim.AdamW
    assert "step" not in vars(built[0])
    assert data.sampler is sampler
    assert set(vars(data)) == before


@pytest.mark.parametrize("sized", [False, True])
def test_streams_are_read_as_in_the_plain_loop(sized: bool) -> None:
    """A batch is asked for when its turn comes, so a stream and dropout share the random numbers as there."""

    class Noise:
        def __iter__(self) -> Any:
            for _ in range(6):
                inputs = torch.randn(4, FEATURES)
                yield inputs, inputs.sum(dim=1, keepdim=True)

    class SizedNoise(Noise):
        def __len__(self) -> int:
            return 6

    stream = SizedNoise() if sized else Noise()
    net = network(dropout=0.4)
    optimizer = sgd(net.parameters())
    torch.manual_seed(8)
    for batch in stream:
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()
    torch.manual_seed(8)
    module = Tiny(dropout=0.4)
    quiet_trainer(max_epochs=1).fit(module, stream)
    for ours, theirs in zip(module.net.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_fp16_survives_batches_without_a_loss() -> None:
    """None from training_step leaves a batch out, also when the scaler has seen no loss yet."""

    class Skips(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx < 2 else super().training_step(batch, batch_idx)

    module = Skips()
    before = module.net[0].weight.detach().clone()
    trainer = quiet_trainer(max_epochs=1, precision="16-mixed")
    trainer.fit(module, loader(16))
    assert trainer.global_step == 4
    assert not torch.equal(module.net[0].weight, before)
