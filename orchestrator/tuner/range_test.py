"""The learning-rate range test: train a few steps while the rate grows, and see where the loss falls fastest.

After Smith, "Cyclical Learning Rates for Training Neural Networks" (2017). It trains a copy of the module, so
weights, optimizers, counters and random streams of the run are not touched. On a group all ranks train
together, with one rate, and the losses are the means over ranks; a rank whose loss diverges ends it for all.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError
from orchestrator.tuner.probe import Probe, copied

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from modules.module import LightningModule
    from orchestrator.engine import Engine
    from orchestrator.settings import Settings
    from orchestrator.trainer import Trainer

MODES = ("exponential", "linear")
_SMOOTHING = 0.98


@dataclass(kw_only=True)
class LRFinder:
    """What a range test has found.

    Attributes:
        mode: exponential or linear.
        lr_min: The first rate.
        lr_max: The last rate, had the loss not diverged before.
        num_training: Steps, had the loss not diverged before.
        results: ``lr``, the rates that were tried, and ``loss``, the smoothed losses.
    """

    mode: str
    lr_min: float
    lr_max: float
    num_training: int
    results: dict[str, list[float]] = field(default_factory=dict)

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """Return the rate at which the loss falls fastest, on the scale on which the rate has grown; None,
        with a warning, where that cannot be said.

        Args:
            skip_begin: Leave out so many of the first rates.
            skip_end: Leave out so many of the last rates.
        """
        end = len(self.results["loss"]) - skip_end
        kept = [
            (loss, lr)
            for loss, lr in list(zip(self.results["loss"], self.results["lr"], strict=True))[skip_begin:end]
            if math.isfinite(loss)
        ]
        if len(kept) < 2:
            warnings.warn(
                f"The learning-rate range test has {len(kept)} losses left after skip_begin={skip_begin} and "
                f"skip_end={skip_end} of {len(self.results['loss'])}, too few for a suggestion. Use more "
                "steps, or a smaller max_lr.",
                stacklevel=2,
            )
            return None
        slopes = _slopes([loss for loss, _ in kept])
        return kept[slopes.index(min(slopes))][1]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:
        """Draw losses over rates, and return the figure.

        Args:
            suggest: Mark the suggestion.
            show: Open a window.
            ax: Axes of matplotlib to draw in; new ones when None.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "LRFinder.plot draws with matplotlib, which is not installed. "
                "pip install 'ray-training-orchestrator[plot]'."
            ) from error
        if ax is None:
            figure, ax = plt.subplots()
        else:
            figure = ax.figure
        ax.plot(self.results["lr"], self.results["loss"])
        if self.mode == "exponential":
            ax.set_xscale("log")
        ax.set_xlabel("Learning rate")
        ax.set_ylabel("Loss")
        chosen = self.suggestion() if suggest else None
        if chosen is not None:
            at = self.results["lr"].index(chosen)
            ax.plot(chosen, self.results["loss"][at], "o", color="red")
        if show:
            plt.show()
        return figure


def check_arguments(
    caller: str, min_lr: Any, max_lr: Any, num_training: Any, mode: Any, early_stop_threshold: Any, steps: str
) -> None:
    """Refuse arguments of a range test that cannot work.

    Args:
        caller: What takes the arguments, for the message.
        min_lr: The first rate.
        max_lr: The last one.
        num_training: Steps.
        mode: exponential or linear.
        early_stop_threshold: See `LearningRateFinder`.
        steps: What `num_training` is called there.

    Raises:
        MisconfigurationError: One of them cannot.
    """
    for name, value in (("min_lr", min_lr), ("max_lr", max_lr)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise MisconfigurationError(f"{caller}({name}={value!r}). Use a number above 0.")
    if not min_lr < max_lr:
        raise MisconfigurationError(
            f"{caller}(min_lr={min_lr!r}, max_lr={max_lr!r}): the rate must grow. Use a larger max_lr."
        )
    if isinstance(num_training, bool) or not isinstance(num_training, int) or num_training < 2:
        raise MisconfigurationError(f"{caller}({steps}={num_training!r}). Use a whole number of at least 2.")
    if mode not in MODES:
        raise MisconfigurationError(
            f"{caller}(mode={mode!r}) is unknown. Use {' or '.join(map(repr, MODES))}."
        )
    threshold = early_stop_threshold
    if threshold is not None and (
        isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not threshold > 0
    ):
        raise MisconfigurationError(
            f"{caller}(early_stop_threshold={threshold!r}). Use a number above 0, or None."
        )


def learning_rates(first: float, last: float, steps: int, mode: str) -> list[float]:
    """Return `steps` rates from `first` to `last`, which grow by a factor or by an amount.

    >>> learning_rates(0.1, 0.4, 4, "linear")[1], learning_rates(0.01, 1.0, 3, "exponential")[1]
    (0.2, 0.1)
    """
    shares = [index / (steps - 1) for index in range(steps)]
    if mode == "linear":
        return [first + (last - first) * share for share in shares]
    return [first * (last / first) ** share for share in shares]


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving averages, corrected for their start at zero."""
    average, found = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        found.append(average / (1 - _SMOOTHING**count))
    return found


def run_range_test(
    engine: Engine,
    *,
    settings: Settings,
    min_lr: float,
    max_lr: float,
    num_training: int,
    mode: str,
    early_stop_threshold: float | None,
) -> LRFinder:
    """Run a range test within `engine`'s fit, on a copy of its module. All ranks must call it.

    Args:
        engine: The engine that is running.
        settings: What the test trains with, but for its own limits.
        min_lr: The first rate.
        max_lr: The last rate.
        num_training: Optimizer steps.
        mode: exponential or linear.
        early_stop_threshold: End when the smoothed loss is so many times the least one; None for never.

    Raises:
        MisconfigurationError: There is not exactly one optimizer, or the module cannot be copied.
    """
    finder = LRFinder(mode=mode, lr_min=min_lr, lr_max=max_lr, num_training=num_training)
    rates = learning_rates(min_lr, max_lr, num_training, mode)
    test = _Growing(rates, early_stop_threshold)
    settings = replace(
        settings,
        max_epochs=-1,
        min_epochs=None,
        max_steps=num_training,
        min_steps=None,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    engine.say(f"Learning-rate range test: {num_training} steps from {min_lr:g} to {max_lr:g}.")
    with copied(engine, "The learning-rate range test") as module:
        Probe(engine, module, [test], settings).run()
    by_rank = engine.strategy.gather(test.losses)
    steps = sorted({step for losses in by_rank for step in losses})
    means = []
    for step in steps:
        found = [losses[step] for losses in by_rank if step in losses]
        means.append(sum(found) / len(found))
    finder.results = {"lr": [rates[step] for step in steps], "loss": smooth(means)}
    return finder


class _Growing(Callback):
    """Sets the rate before each step, and takes the losses."""

    def __init__(self, rates: list[float], threshold: float | None) -> None:
        self.rates = rates
        self.threshold = threshold
        self.losses: dict[int, float] = {}
        self._window: list[Tensor] = []
        self._average = 0.0
        self._best = math.inf

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the schedulers: the test is the schedule."""
        assert trainer.engine is not None
        trainer.engine.schedulers.clear()
        if len(trainer.optimizers) != 1:
            raise MisconfigurationError(
                f"The learning-rate range test needs one optimizer, and configure_optimizers returned "
                f"{len(trainer.optimizers)}. Return one, or choose the rate yourself."
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate, for optimizers that run the forward pass themselves."""
        self._set(trainer.optimizers[0], trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Set the rate, also on a rank that has no batch."""
        self._set(optimizer, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the loss of a step, and end the test when it diverges."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if loss is not None:
            self._window.append(loss)
        step = trainer.global_step - 1
        if step < 0 or step in self.losses or not self._window:
            return
        value = float(torch.stack([item.float() for item in self._window]).mean())
        self._window = []
        self.losses[step] = value
        self._average = _SMOOTHING * self._average + (1 - _SMOOTHING) * value
        smoothed = self._average / (1 - _SMOOTHING ** len(self.losses))
        self._best = min(self._best, smoothed)
        if self.threshold is not None and len(self.losses) > 1:
            diverges = not math.isfinite(smoothed) or smoothed > self.threshold * self._best
            trainer.should_stop = trainer.should_stop or diverges

    def _set(self, optimizer: Optimizer, step: int) -> None:
        set_learning_rate(optimizer, self.rates[min(step, len(self.rates) - 1)])


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all parameter groups the rate; one that is a tensor stays the same tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _slopes(values: list[float]) -> list[float]:
    """Return the central differences, one-sided at both ends."""
    inner = [(after - before) / 2 for before, after in zip(values, values[2:], strict=False)]
    return [values[1] - values[0], *inner, values[-1] - values[-2]]
