"""Finds a learning rate when fit starts, by a range test on a copy of the module, and trains with it.

The fit goes on as if the module had been made with that rate: its optimizers are built anew from it. A
resumed fit keeps the rate of its checkpoint. See `orchestrator.tuner.range_test` for the test itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.callbacks.callback import Callback

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.settings import Settings
    from orchestrator.trainer import Trainer
    from orchestrator.tuner.range_test import LRFinder


class LearningRateFinder(Callback):
    """Runs a range test when fit starts. A subclass may call `lr_find` in other hooks.

    Args:
        min_lr: The first rate.
        max_lr: The last rate.
        num_training_steps: Optimizer steps of the test.
        mode: The rate grows by a factor (``"exponential"``) or by an amount (``"linear"``).
        early_stop_threshold: End when the smoothed loss is so many times the least one; None for never.
        update_attr: Set the module's ``lr`` or ``learning_rate``, and that of its hyperparameters.
        attr_name: Another name for it.

    Attributes:
        optimal_lr: What the last test has found.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    tunes = True
    _settings: Settings | None = None

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        from orchestrator.tuner.range_test import check_arguments

        check_arguments(
            type(self).__name__,
            min_lr,
            max_lr,
            num_training_steps,
            mode,
            early_stop_threshold,
            "num_training_steps",
        )
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.num_training_steps = num_training_steps
        self.mode = mode
        self.early_stop_threshold = early_stop_threshold
        self.update_attr = update_attr
        self.attr_name = attr_name
        self.optimal_lr: LRFinder | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the test, unless the fit is resumed."""
        if trainer.ckpt_path is None:
            self.lr_find(trainer, pl_module)

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the test now, and train with the rate from here on. On a group, all ranks must call it.

        Raises:
            MisconfigurationError: There is no attribute to set, not one optimizer, or no way to copy the
                module.
        """
        from orchestrator.tuner import attribute
        from orchestrator.tuner.range_test import run_range_test, set_learning_rate

        engine = trainer.engine
        assert engine is not None
        if trainer.fast_dev_run:
            engine.say("fast_dev_run leaves out the learning-rate range test.")
            return
        names = (self.attr_name,) if self.attr_name else attribute.LEARNING_RATES
        caller = f"{type(self).__name__}(attr_name={self.attr_name!r})"
        name = attribute.find_name(names, caller, pl_module, None) if self.update_attr else ""
        self.optimal_lr = run_range_test(
            engine,
            settings=self._settings or engine.settings,
            min_lr=self.min_lr,
            max_lr=self.max_lr,
            num_training=self.num_training_steps,
            mode=self.mode,
            early_stop_threshold=self.early_stop_threshold,
        )
        rate = self.optimal_lr.suggestion() if self.update_attr else None
        if rate is None:
            return
        attribute.write(name, rate, pl_module, None)
        engine.say(f"Learning rate: {name} is now {rate:.6g}.")
        if trainer.global_step == 0:
            engine.rebuild_optimizers()
            return
        for optimizer in engine.optimizers:
            set_learning_rate(optimizer, rate)
        for config in engine.schedulers:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [rate] * len(config.scheduler.base_lrs)
