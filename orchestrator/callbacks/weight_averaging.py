"""Keep an average of the weights while training, and use it for validation, checkpoints and the result.

Training goes on with its own weights. A checkpoint's ``state_dict`` is the average, and the training weights
are beside it, so that a resumed run equals one that never stopped. Before the first update there is no
average: then validation and checkpoints see the training weights. An argument that is none raises
`MisconfigurationError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.callbacks.averaged_weights import AveragedWeights
from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.strategies.sharding import refuse_sharded

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer

_FUNCTIONS = ("avg_fn", "multi_avg_fn")


class WeightAveraging(Callback):
    """Averages after every optimizer step, with equal weights, unless a subclass or an argument says
    otherwise.

    Args:
        device: Where the average lives; with the module when None.
        use_buffers: Average buffers too; False leaves validation and checkpoints those of training.
        **kwargs: ``avg_fn`` or ``multi_avg_fn``, as `torch.optim.swa_utils.AveragedModel` takes them.

    Raises:
        MisconfigurationError: There is no such argument.
    """

    meets_ranks = True

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        **kwargs: Any,
    ) -> None:
        for name, value in kwargs.items():
            if name not in _FUNCTIONS:
                raise MisconfigurationError(
                    f"{type(self).__name__} has no argument {name!r}.{suggest(name, _FUNCTIONS)} Besides "
                    "its own it "
                    "takes avg_fn and multi_avg_fn."
                )
            if value is not None and not callable(value):
                raise MisconfigurationError(
                    f"{type(self).__name__}({name}={value!r}) cannot be called. Give a function as in "
                    "torch.optim.swa_utils."
                )
        self.device = device
        self.use_buffers = use_buffers
        self._functions = kwargs
        self._average: AveragedWeights | None = None
        self._latest_update_step = 0
        self._swapped = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to average now. Override it to average at other times.

        Args:
            step_idx: The optimizer step, from 0, that was just made; None at the end of an epoch.
            epoch_idx: The epoch, from 0, that ends; None after a step.
        """
        return step_idx is not None

    @property
    def has_average(self) -> bool:
        """Whether weights have been averaged at least once."""
        return self._average is not None and self._average.count > 0

    def state_dict(self) -> dict[str, Any]:
        """Return the last step that was averaged; the average itself stands in the checkpoint as weights."""
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._latest_update_step = state_dict["latest_update_step"]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the tensors with the process that trains: the module holds the average afterwards."""
        return {**self.__dict__, "_average": None, "_swapped": False}

    # ---------------------------------------------------------------- hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the average of an earlier fit, and refuse weights that are dealt to ranks."""
        if stage == "fit":
            refuse_sharded(
                trainer.strategy,
                type(self).__name__,
                "a second set of weights is kept beside the first",
                "Use strategy='ddp', or leave the callback out.",
            )
            self._average, self._swapped = None, False
            self._latest_update_step = trainer.global_step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights that are there, or go on with a checkpoint's average."""
        if self._average is None:
            self._average = self._new(pl_module)
        self._average.follow(pl_module)
        self._average.move()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notice parameters that were replaced."""
        assert self._average is not None
        self._average.follow(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after a step."""
        step = trainer.state.global_step
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._update(step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average after an epoch, and after a step that was made behind its last batch."""
        self.on_train_batch_end(trainer, pl_module, None, None, -1)
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update(trainer.global_step)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._swap(to_average=trainer.state.fn == "fit" and self.has_average)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the training weights."""
        self._swap(to_average=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the training weights back, where validation has failed."""
        self._swap(to_average=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the average."""
        if self._average is not None and self.has_average:
            self._average.copy_to_module()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make the average the checkpoint's weights, and keep the training weights beside it."""
        if self._average is None or not self.has_average:
            return
        checkpoint["current_model_state"] = _cloned(checkpoint["state_dict"])
        self._average.swap()
        checkpoint["state_dict"] = _cloned(pl_module.state_dict())
        self._average.swap()
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._average.count)}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average from the checkpoint's weights, which the module has, and go on with training's."""
        current = checkpoint.get("current_model_state")
        if current is None or trainer.state.fn != "fit":
            return
        self._average = self._new(pl_module)
        self._average.count = int(checkpoint["averaging_state"]["n_averaged"])
        pl_module.load_state_dict(current)

    def _new(self, pl_module: LightningModule) -> AveragedWeights:
        return AveragedWeights(pl_module, use_buffers=self.use_buffers, device=self.device, **self._functions)

    def _update(self, step: int) -> None:
        assert self._average is not None
        self._average.update()
        self._latest_update_step = step

    def _swap(self, *, to_average: bool) -> None:
        if self._average is not None and self._swapped is not to_average:
            self._average.swap()
            self._swapped = to_average


def _cloned(state: dict[str, Any]) -> dict[str, Any]:
    return {name: item.clone() if isinstance(item, Tensor) else item for name, item in state.items()}
