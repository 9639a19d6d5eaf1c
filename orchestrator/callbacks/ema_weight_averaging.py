"""Keep an exponential moving average of the weights while training.

Everything else is `WeightAveraging`'s: the average is validated, saved, and left in the module at the end.
Arguments that cannot work raise `MisconfigurationError`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn

from orchestrator.callbacks.weight_averaging import WeightAveraging
from orchestrator.errors import MisconfigurationError


class EMAWeightAveraging(WeightAveraging):
    """After an update the average is ``decay * average + (1 - decay) * weights``.

    Args:
        device: Where the average lives; with the module when None.
        use_buffers: Average buffers too.
        decay: The weight of the old average.
        update_every_n_steps: Average at each optimizer step, from 0, that is a multiple of this; 0 at none.
        update_starting_at_step: Not before this step, counted from 0.
        update_starting_at_epoch: Also at the end of each epoch from this one on, counted from 0.
        **kwargs: As for `WeightAveraging`.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(decay, int | float) or isinstance(decay, bool) or not 0 <= decay <= 1:
            raise MisconfigurationError(
                f"EMAWeightAveraging(decay={decay!r}) is no weight. Write a number from 0 to 1, such as "
                "0.999."
            )
        for name, value, optional in (
            ("update_every_n_steps", update_every_n_steps, False),
            ("update_starting_at_step", update_starting_at_step, True),
            ("update_starting_at_epoch", update_starting_at_epoch, True),
        ):
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise MisconfigurationError(
                    f"EMAWeightAveraging({name}={value!r}) is not a count. Write a whole number of 0 or more."
                )
        if not {"avg_fn", "multi_avg_fn"} & kwargs.keys():
            kwargs["avg_fn"] = functools.partial(_decay, decay)
            kwargs["multi_avg_fn"] = functools.partial(_decay_many, decay)
        super().__init__(device=device, use_buffers=use_buffers, **kwargs)
        self.decay = decay
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to average after step `step_idx`, or at the end of epoch `epoch_idx`."""
        if step_idx is not None:
            every = self.update_every_n_steps
            return every > 0 and step_idx >= (self.update_starting_at_step or 0) and step_idx % every == 0
        start = self.update_starting_at_epoch
        return epoch_idx is not None and start is not None and epoch_idx >= start


def _decay(decay: float, average: Tensor, weights: Tensor, count: int) -> Tensor:
    """Do as torch's function, which does not pickle."""
    found: Tensor = get_ema_avg_fn(decay)(average, weights, count)
    return found


def _decay_many(decay: float, averages: list[Tensor], weights: list[Tensor], count: int) -> None:
    """Do as torch's function, which does not pickle."""
    get_ema_multi_avg_fn(decay)(averages, weights, count)
