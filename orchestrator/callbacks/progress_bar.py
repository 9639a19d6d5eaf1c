"""The base class of progress bars: what they say, and which display the driver draws.

A bar is a callback, but it draws in the driver only, from progress records that rank 0 sends at most about
five times a second; so it costs a step nothing. What it shows beside the bar is asked of it
where training runs (`get_metrics`). A subclass may also override hooks and draw for itself, as any callback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.progress import Display
    from orchestrator.trainer import Trainer


class ProgressBar(Callback):
    """Subclass it, override `get_metrics` or a description, or draw in hooks of your own.

    Attributes:
        refresh_rate: Batches between two drawings, at least; 0 draws nothing. Never more than a few drawings
            a second are made.
    """

    refresh_rate: int = 1
    _enabled: bool = True
    _trainer: Trainer | None = None

    # ---------------------------------------------------------------- what is shown

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar: metrics logged with ``prog_bar=True``, and ``v_num``, the
        version of the first logger.

        Called on rank 0, when a record is due. Values are the last that were read, so nothing waits for the
        device; numbers and strings are allowed.
        """
        version = trainer.loggers[0].version if trainer.loggers else None
        shown: dict[str, Any] = {}
        if version is not None and version != "":
            shown["v_num"] = version if isinstance(version, int) else str(version)[-4:]
        return {**shown, **trainer.progress_bar_metrics}

    @property
    def sanity_check_description(self) -> str:
        """The title while validation is tried before training."""
        return "Sanity check"

    @property
    def train_description(self) -> str:
        """The title of training, before the epoch's number."""
        return "Epoch"

    @property
    def validation_description(self) -> str:
        """The title of validation."""
        return "Validating"

    @property
    def test_description(self) -> str:
        """The title of testing."""
        return "Testing"

    @property
    def predict_description(self) -> str:
        """The title of prediction."""
        return "Predicting"

    @property
    def descriptions(self) -> dict[str, str]:
        """The titles by stage."""
        return {
            "train": self.train_description,
            "validate": self.validation_description,
            "sanity": self.sanity_check_description,
            "test": self.test_description,
            "predict": self.predict_description,
        }

    # ---------------------------------------------------------------- whether it is shown

    @property
    def is_enabled(self) -> bool:
        """Whether it draws."""
        return self._enabled and self.refresh_rate > 0

    @property
    def is_disabled(self) -> bool:
        """Whether it draws nothing."""
        return not self.is_enabled

    @property
    def wants_display(self) -> bool:
        """Whether the driver is to draw: it is enabled, and does not draw in hooks of its own."""
        return self.is_enabled and type(self).display is not ProgressBar.display

    def enable(self) -> None:
        """Draw, from the next call of the trainer on."""
        self._enabled = True

    def disable(self) -> None:
        """Draw nothing, from the next call of the trainer on."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without damage to the bars."""
        print(*args, **kwargs)

    def display(self, stream: TextIO, now_s: Callable[[], float]) -> Display | None:
        """Return what draws on the terminal `stream`; None where this bar draws in hooks of its own.

        Args:
            stream: A terminal.
            now_s: Reads the time, in seconds.
        """
        return None

    # ---------------------------------------------------------------- what subclasses read

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the trainer; ranks other than the first draw nothing."""
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    @property
    def trainer(self) -> Trainer:
        """The trainer.

        Raises:
            RuntimeError: It has not run yet.
        """
        if self._trainer is None:
            raise RuntimeError(f"{type(self).__qualname__}.trainer is read before the trainer has run.")
        return self._trainer

    @property
    def total_train_batches(self) -> int | float:
        """Training batches of an epoch; infinite when not known."""
        return self.trainer.num_training_batches

    @property
    def total_val_batches(self) -> int | float:
        """Validation batches of all loaders; infinite when not known."""
        return sum(self.trainer.num_val_batches)


def check_refresh_rate(owner: object, refresh_rate: object) -> int:
    """Return `refresh_rate` if it is one.

    Raises:
        MisconfigurationError: It is not a whole number of at least 0.
    """
    if isinstance(refresh_rate, bool) or not isinstance(refresh_rate, int) or refresh_rate < 0:
        raise MisconfigurationError(
            f"{type(owner).__name__}(refresh_rate={refresh_rate!r}). Use a number of batches, or 0 to draw "
            "nothing."
        )
    return refresh_rate
