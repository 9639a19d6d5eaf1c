"""The learning-rate range test: the rates, the losses, the suggestion, and that a run does not notice it."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import orchestrator as pl
from orchestrator.callbacks import LearningRateFinder
from orchestrator.errors import MisconfigurationError
from orchestrator.tuner import Tuner
from orchestrator.tuner.range_test import LRFinder, learning_rates, smooth
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, quiet_trainer


class Rated(Tiny):
    """Has a learning rate, in an attribute and in the hyperparameters, dropout, and shuffled data."""

    def __init__(self, lr: float = 0.5) -> None:
        super().__init__(dropout=0.3)
        self.save_hyperparameters()
        self.lr = lr
        self.order = torch.Generator().manual_seed(4)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def train_dataloader(self) -> Any:
        return loader(48, shuffle=True, generator=self.order)


def fitted(module: Tiny, *callbacks: pl.Callback, **arguments: Any) -> Tiny:
    """Train two epochs from one random state."""
    torch.manual_seed(7)
    quiet_trainer(*callbacks, max_epochs=2, **arguments).fit(module)
    return module


# ---------------------------------------------------------------- pure parts


@given(
    st.floats(1e-8, 1e-2), st.floats(0.1, 10), st.integers(2, 50), st.sampled_from(["linear", "exponential"])
)
def test_rates_grow_from_the_first_to_the_last(first: float, last: float, steps: int, mode: str) -> None:
    """There are as many rates as steps; they grow, and begin and end where they should."""
    rates = learning_rates(first, last, steps, mode)
    assert len(rates) == steps
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(last)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40))
def test_smoothed_losses_stay_between_the_extremes(losses: list[float]) -> None:
    """The first smoothed loss is the first loss, and none leaves the range of those so far."""
    found = smooth(losses)
    assert found[0] == pytest.approx(losses[0])
    for index, value in enumerate(found):
        assert min(losses[: index + 1]) - 1e-6 <= value <= max(losses[: index + 1]) + 1e-6


def finder(losses: list[float]) -> LRFinder:
    """What a test with these losses has found."""
    rates = learning_rates(1e-4, 1.0, len(losses), "exponential")
    return LRFinder(
        mode="exponential",
        lr_min=1e-4,
        lr_max=1.0,
        num_training=len(losses),
        results={"lr": rates, "loss": losses},
    )


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    """Among the rates that are not left out, and losses that are numbers."""
    found = finder([9.0, 1.0, 1.0, 0.9, 0.5, 0.1, 0.1, math.nan, -50.0])
    assert found.suggestion(skip_begin=2, skip_end=1) == found.results["lr"][4]
    assert found.suggestion(skip_begin=0, skip_end=1) == found.results["lr"][0]


def test_too_few_losses_give_no_suggestion() -> None:
    """With fewer than two losses left there is a warning that says so, and None."""
    with pytest.warns(UserWarning, match="has 1 losses left after skip_begin=10 and skip_end=1 of 12"):
        assert finder([1.0] * 12).suggestion() is None


@pytest.mark.extras
def test_the_suggestion_beside_lightnings() -> None:
    """With a linear scale Lightning suggests the same rate; with an exponential one it takes the slope over
    the rate itself, so that noise at tiny rates wins, where ours is the steepest place of the curve.
    """
    from lightning.pytorch.tuner.lr_finder import _LRFinder

    generator = torch.Generator().manual_seed(3)
    noise = 1e-3 * torch.rand(40, generator=generator)
    drop = torch.sigmoid((torch.arange(40) - 30).float())
    losses = (2 - drop + noise).tolist()

    def both(mode: str) -> tuple[float | None, float | None]:
        theirs = _LRFinder(mode, 1e-8, 1.0, 40)
        ours = LRFinder(mode=mode, lr_min=1e-8, lr_max=1.0, num_training=40)
        theirs.results = ours.results = {"lr": learning_rates(1e-8, 1.0, 40, mode), "loss": losses}
        return ours.suggestion(), theirs.suggestion()

    ours, theirs = both("linear")
    assert ours == theirs
    ours, theirs = both("exponential")
    assert ours == learning_rates(1e-8, 1.0, 40, "exponential")[30]
    assert ours is not None
    assert theirs is not None
    assert theirs < ours / 10


@pytest.mark.extras
def test_plot_draws_the_curve() -> None:
    """The figure has the losses over the rates, and a point where the suggestion is."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = finder([2.0 - index / 20 for index in range(30)])
    axes = found.plot(suggest=True).axes[0]
    assert axes.get_xscale() == "log"
    assert list(axes.lines[0].get_ydata()) == found.results["loss"]
    assert axes.lines[1].get_xdata()[0] == found.suggestion()
    plt.close("all")


def test_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only plot needs matplotlib, and says how to get it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"ray-training-orchestrator\[plot\]"):
        finder([1.0] * 20).plot()


# ---------------------------------------------------------------- in this process


def test_losses_are_those_of_training_with_growing_rates() -> None:
    """The losses are a plain loop's whose optimizer has the next rate in each step."""
    module = Rated()
    torch.manual_seed(7)
    found = Tuner(quiet_trainer()).lr_find(
        module, num_training=12, early_stop_threshold=None, update_attr=False
    )
    torch.manual_seed(7)
    plain = Rated()
    optimizer = plain.configure_optimizers()
    losses: list[float] = []
    rates = learning_rates(1e-8, 1, 12, "exponential")
    for rate, batch in zip(rates, plain.train_dataloader(), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = plain.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert found is not None
    assert found.results == {"lr": rates, "loss": smooth(losses)}


def test_nothing_but_the_attribute_changes() -> None:
    """Weights, random streams, generators, modes, trainer and counters are as before; the rate is set."""
    module, trainer = Rated(), quiet_trainer()
    before = {name: item.clone() for name, item in module.state_dict().items()}
    streams = torch.get_rng_state(), module.order.get_state()
    found = Tuner(trainer).lr_find(module, num_training=30)
    assert found is not None
    assert module.lr == module.hparams.lr == found.suggestion()
    assert all(torch.equal(before[name], item) for name, item in module.state_dict().items())
    assert torch.equal(streams[0], torch.get_rng_state())
    assert torch.equal(streams[1], module.order.get_state())
    assert (trainer.global_step, trainer.engine, module.__dict__["_trainer"]) == (0, None, None)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_fit_after_it_is_a_fit_with_that_rate() -> None:
    """lr_find and then fit gives the weights, to the bit, of a fit with the rate that was found."""
    module = Rated()
    Tuner(quiet_trainer()).lr_find(module, num_training=30)
    assert_equal_weights(fitted(module), fitted(Rated(module.lr)))


def test_the_callback_does_the_same_within_fit() -> None:
    """A LearningRateFinder changes the fit to one with the rate that it has found, and to nothing else."""
    callback = LearningRateFinder(num_training_steps=30)
    module = fitted(Rated(), callback)
    assert callback.optimal_lr is not None
    assert module.lr == callback.optimal_lr.suggestion()
    assert_equal_weights(module, fitted(Rated(module.lr)))


def test_accumulated_batches_count_as_one_step() -> None:
    """With accumulation a rate belongs to an optimizer step, and its loss is the mean of its batches."""
    found = Tuner(quiet_trainer(accumulate_grad_batches=3)).lr_find(
        Rated(), num_training=8, early_stop_threshold=None, update_attr=False
    )
    assert found is not None
    assert len(found.results["loss"]) == 8


def test_it_ends_when_the_loss_diverges() -> None:
    """A smoothed loss of several times the least one ends the test; None goes on to the last rate."""

    def steps(threshold: float | None) -> int:
        found = Tuner(quiet_trainer()).lr_find(
            Rated(), num_training=60, max_lr=1e4, early_stop_threshold=threshold, update_attr=False
        )
        assert found is not None
        return len(found.results["lr"])

    assert steps(2.0) < steps(None) == 60


def test_schedulers_and_callbacks_take_no_part() -> None:
    """Neither the module's schedulers nor the user's callbacks run in the test."""

    class Scheduled(Rated):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "none"}}

    class Never(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise AssertionError

    assert Tuner(quiet_trainer(Never())).lr_find(Scheduled(), num_training=30) is not None


def test_a_schedule_over_the_length_of_training_is_no_hindrance() -> None:
    """A module that plans its schedule by the estimated steps can be tried, by the Tuner and by callback."""

    class Cycling(Rated):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            steps = self.trainer.estimated_stepping_batches
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    assert Tuner(quiet_trainer()).lr_find(Cycling(), num_training=30) is not None
    module = fitted(Cycling(), LearningRateFinder(num_training_steps=30))
    assert module.trainer.global_step == 24


def test_what_the_module_sends_to_its_logger_is_dropped(tmp_path: Any) -> None:
    """A module that writes to its logger's experiment runs in the test, and nothing is written."""

    class Writes(Rated):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.logger.experiment.add_scalar("x", 1.0, batch_idx)
            self.log("y", 1.0)
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer(logger=True, default_root_dir=tmp_path, log_every_n_steps=1)
    assert Tuner(trainer).lr_find(Writes(), num_training=20) is not None
    assert list(tmp_path.iterdir()) == []


def test_a_subclass_may_run_it_later() -> None:
    """Called in a later epoch, the test sets the running optimizer's rate, and leaves its momentum."""
    seen: list[tuple[float, bool]] = []

    class Later(LearningRateFinder):
        def on_fit_start(self, *args: Any) -> None:
            """Not yet."""

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                self.lr_find(trainer, pl_module)
                optimizer = trainer.optimizers[0]
                seen.append((optimizer.param_groups[0]["lr"], bool(optimizer.state)))

    callback = Later(num_training_steps=30)
    module = fitted(Rated(), callback)
    assert seen == [(module.lr, True)]


def test_a_resumed_fit_keeps_its_rate(tmp_path: Any) -> None:
    """A fit that goes on from a checkpoint runs no test."""
    trainer = quiet_trainer()
    trainer.fit(Rated())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    callback = LearningRateFinder()
    quiet_trainer(callback, max_epochs=2).fit(Rated(), ckpt_path=tmp_path / "a.ckpt")
    assert callback.optimal_lr is None


def test_fast_dev_run_leaves_it_out() -> None:
    """Under fast_dev_run nothing is tried, and None comes back."""
    assert Tuner(quiet_trainer(fast_dev_run=True)).lr_find(Rated()) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_lr": 0}, r"lr_find\(min_lr=0\)"),
        ({"max_lr": 1e-9}, r"min_lr=1e-08, max_lr=1e-09\): the rate must grow"),
        ({"num_training": 1}, r"num_training=1\). Use a whole number of at least 2"),
        ({"mode": "log"}, r"mode='log'\) is unknown"),
        ({"early_stop_threshold": -1}, r"early_stop_threshold=-1\)"),
        ({"method": "test"}, "only 'fit' has a learning rate"),
        ({"attr_name": "rate"}, "have no 'rate'"),
    ],
)
def test_arguments_are_checked_before_anything_runs(arguments: dict[str, Any], message: str) -> None:
    """What cannot work is refused by name."""
    with pytest.raises(MisconfigurationError, match=message):
        Tuner(quiet_trainer()).lr_find(Rated(), **arguments)


def test_modules_that_cannot_be_tuned_are_refused() -> None:
    """No rate, no optimizer, a module that cannot be copied, and a second finder are named."""

    class NoOptimizer(Rated):
        def configure_optimizers(self) -> Any:
            return None

    stuck = Rated()
    stuck.iterator = (item for item in ())  # type: ignore[assignment]
    tuner = Tuner(quiet_trainer())
    with pytest.raises(MisconfigurationError, match=r"have no 'lr' or 'learning_rate'\. Set self\.lr"):
        tuner.lr_find(Tiny(), loader(8))
    with (
        pytest.warns(UserWarning, match="returned no optimizer"),
        pytest.raises(MisconfigurationError, match=r"needs one optimizer.*returned 0"),
    ):
        tuner.lr_find(NoOptimizer())
    with pytest.raises(MisconfigurationError, match="Rated cannot be copied: TypeError"):
        tuner.lr_find(stuck)
    with pytest.raises(MisconfigurationError, match="has LearningRateFinder among its callbacks"):
        Tuner(quiet_trainer(LearningRateFinder())).lr_find(Rated())


def test_tuning_callbacks_run_first() -> None:
    """Whatever the order in which they were given."""
    other, finds = pl.Callback(), LearningRateFinder()
    assert quiet_trainer(other, finds).callbacks == [finds, other]


# ---------------------------------------------------------------- on a group


class RatedNet(Net):
    """The group tests' module with a learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = 0.1

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


@pytest.mark.ray
def test_a_group_finds_together_and_trains_with_it(tmp_path: Any) -> None:
    """Two ranks, the last batches uneven: one rate for both, set in the driver; then the fit of that rate."""
    module = RatedNet()
    before = {name: item.clone() for name, item in module.state_dict().items()}
    stream = torch.get_rng_state()
    found = Tuner(group_trainer(tmp_path)).lr_find(module, group_loader(41), num_training=30)
    assert found is not None
    assert len(found.results["lr"]) <= 30
    assert module.lr == found.suggestion()
    assert all(torch.equal(before[name], item) for name, item in module.state_dict().items())
    assert torch.equal(stream, torch.get_rng_state())

    torch.manual_seed(1)
    group_trainer(tmp_path).fit(module, group_loader(41))
    plain = RatedNet()
    plain.lr = module.lr
    torch.manual_seed(1)
    group_trainer(tmp_path).fit(plain, group_loader(41))
    assert_equal_weights(module, plain)
