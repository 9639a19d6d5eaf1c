"""Arguments of the Trainer that can be changed afterwards: ``trainer.max_epochs = 20`` before fitting again.

What is set is checked as the constructor checks it, and is a `MisconfigurationError` that names it otherwise.
It holds from the next call on. Set by a hook during fit, the limits of epochs and steps, the intervals of
validation and of log points hold from the next epoch on, all else from the next call; on a group a hook that
sets one must do so on all ranks.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar, overload

if TYPE_CHECKING:
    from orchestrator.engine import Engine
    from orchestrator.settings import Settings

T = TypeVar("T")


class Setting(Generic[T]):
    """An argument that is read as it is in force, and can be set.

    Args:
        default: What is read where the argument was left out.
    """

    def __init__(self, default: T | None = None) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, trainer: None, owner: type) -> Self: ...

    @overload
    def __get__(self, trainer: Adjustable, owner: type) -> T: ...

    def __get__(self, trainer: Adjustable | None, owner: type) -> Self | T:
        if trainer is None:
            return self
        value: Any = getattr(trainer.settings, self._name)
        return self._default if value is None else value  # type: ignore[return-value]

    def __set__(self, trainer: Adjustable, value: T) -> None:
        trainer.settings = trainer.settings.adjusted(self._name, value)
        if trainer.engine is not None:
            trainer.engine.settings = trainer.settings


class Adjustable:
    """What a Trainer has of this kind.

    Attributes:
        settings: The arguments.
        engine: The run of this process, or its last one; None where there was none.
        max_epochs: Epochs, over all calls of fit: one that goes on trains what is left of them.
        min_epochs: Epochs before which nobody stops training early.
        max_steps: Optimizer steps, over all calls of fit; -1 for no limit.
        min_steps: Optimizer steps before which nobody stops training early.
        limit_train_batches: A number of batches (int) or a share of them (float); likewise for the others.
        limit_val_batches: See above.
        limit_test_batches: See above.
        limit_predict_batches: See above.
        num_sanity_val_steps: Validation batches tried before training; -1 for all.
        val_check_interval: When validation runs; a length of time is read as a timedelta.
        check_val_every_n_epoch: In which epochs; None counts batches over epochs.
        reload_dataloaders_every_n_epochs: When loaders are asked for anew; 0 never.
        log_every_n_steps: Steps between log points.
        gradient_clip_val: What gradients are clipped at, or None.
        gradient_clip_algorithm: ``"norm"``, ``"value"``, or None for the first.
    """

    settings: Settings
    engine: Engine | None

    max_epochs = Setting[int | None]()
    min_epochs = Setting[int | None]()
    max_steps = Setting[int]()
    min_steps = Setting[int | None]()
    limit_train_batches = Setting[int | float](1.0)
    limit_val_batches = Setting[int | float](1.0)
    limit_test_batches = Setting[int | float](1.0)
    limit_predict_batches = Setting[int | float](1.0)
    num_sanity_val_steps = Setting[int]()
    val_check_interval = Setting[int | float | timedelta]()
    check_val_every_n_epoch = Setting[int | None]()
    reload_dataloaders_every_n_epochs = Setting[int]()
    log_every_n_steps = Setting[int]()
    gradient_clip_val = Setting[float | None]()
    gradient_clip_algorithm = Setting[str | None]()

    @property
    def overfit_batches(self) -> int | float:
        """As given."""
        return self.settings.overfit_batches

    @property
    def barebones(self) -> bool:
        """Whether training runs with nothing around it."""
        return self.settings.barebones

    @property
    def enable_autolog_hparams(self) -> bool:
        """Whether hyperparameters go to the loggers."""
        return self.settings.enable_autolog_hparams

    @property
    def fit_loop(self) -> FitLoop:
        """The limits of training under the name that scripts for Lightning use."""
        return FitLoop(self)


class FitLoop:
    """``trainer.fit_loop``: the Trainer's limits of epochs and steps, read and set. There is no other loop.

    Args:
        trainer: Whose limits.
    """

    __slots__ = ("_trainer",)
    _trainer: Adjustable

    def __init__(self, trainer: Adjustable) -> None:
        object.__setattr__(self, "_trainer", trainer)

    @property
    def epoch_loop(self) -> FitLoop:
        """The same: scripts look up the limits of steps here."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name not in _LIMITS:
            _refuse(name)
        return getattr(self._trainer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _LIMITS:
            _refuse(name)
        setattr(self._trainer, name, value)


_LIMITS = ("max_epochs", "min_epochs", "max_steps", "min_steps")


def _refuse(name: str) -> NoReturn:
    raise AttributeError(
        f"trainer.fit_loop.{name}: loops have no parts here but {', '.join(_LIMITS)}. Use the Trainer's own "
        "attributes and hooks."
    )
