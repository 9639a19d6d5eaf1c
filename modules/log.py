"""`self.log` and `self.log_dict`, as modules and callbacks have them.

While a trainer runs, both hand their arguments on to a plain attribute, which is never part of a pickle or a
checkpoint. Without a trainer the first call warns, and nothing is recorded. What is wrong with a call, the
trainer's side says.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import ModuleDict


class LogMixin:
    """Gives a class ``log`` and ``log_dict``."""

    _log_sink: Callable[..., None] | None = None

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record a number or a metric under `name`, for loggers, callbacks and the progress display.

        Args:
            name: What it is called. Logged on step and on epoch, it appears as ``name_step`` and
                ``name_epoch`` too.
            value: A number or a tensor of one element; detached, never waited for. Or a metric object with
                update, compute and reset, such as torchmetrics': its newest value is that of the step, and at
                the end of the epoch it is computed over all ranks and reset. It must be an attribute of the
                module.
            prog_bar: Show it in the progress display.
            logger: Send it to the loggers (True unless said otherwise).
            on_step: Record the value of this step. Default: True in training steps.
            on_epoch: Record the epoch's reduction. Default: True in evaluation and in epoch hooks.
            reduce_fx: How an epoch's values become one: mean (weighted by batch size), sum, min, max, or
                torch's and Python's functions of these names. A metric object reduces itself.
            enable_graph: Accepted; values are always detached.
            sync_dist: Reduce over ranks; otherwise rank 0's value counts. A metric object always does.
            sync_dist_group: Reduce over the ranks of this process group only. All ranks see the value of the
                group of the first rank that has logged it.
            add_dataloader_idx: With several evaluation loaders, append ``/dataloader_idx_N``.
            batch_size: Weight of this value in the mean, 0 leaves it out; taken from the batch when None.
            metric_attribute: Where in the module the metric object is; found when None.
            rank_zero_only: Called on rank 0 only; such a value cannot be monitored.

        Raises:
            MisconfigurationError: Not allowed in this hook, no number, a metric that is no attribute, or
                called differently than before under the same name.
        """
        sink = self._log_sink
        if sink is None:
            self._warn_unattached(stacklevel=3)
            return
        sink(
            name,
            value,
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            sync_dist,
            sync_dist_group,
            add_dataloader_idx,
            batch_size,
            metric_attribute,
            rank_zero_only,
        )

    def log_dict(
        self,
        dictionary: Mapping[str, Any] | ModuleDict,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Call `log` for each name and value of `dictionary`, with the same arguments.

        Args:
            dictionary: Numbers, tensors or metric objects by name; or a torchmetrics ``MetricCollection``,
                whose prefix and postfix are part of the names.
            prog_bar: As in `log`, like all that follow.
            logger: See `log`.
            on_step: See `log`.
            on_epoch: See `log`.
            reduce_fx: See `log`.
            enable_graph: See `log`.
            sync_dist: See `log`.
            sync_dist_group: See `log`.
            add_dataloader_idx: See `log`.
            batch_size: See `log`.
            rank_zero_only: See `log`.
        """
        if self._log_sink is None:
            self._warn_unattached(stacklevel=3)
            return
        items: Any = dictionary.items
        for name, value in items(copy_state=False) if hasattr(dictionary, "compute_groups") else items():
            self.log(
                name,
                value,
                prog_bar=prog_bar,
                logger=logger,
                on_step=on_step,
                on_epoch=on_epoch,
                reduce_fx=reduce_fx,
                enable_graph=enable_graph,
                sync_dist=sync_dist,
                sync_dist_group=sync_dist_group,
                add_dataloader_idx=add_dataloader_idx,
                batch_size=batch_size,
                rank_zero_only=rank_zero_only,
            )

    def _warn_unattached(self, stacklevel: int) -> None:
        if self.__dict__.get("_warned_unattached"):
            return
        self.__dict__["_warned_unattached"] = True
        warnings.warn(
            f"{type(self).__qualname__}.log() was called without a Trainer: nothing is recorded.",
            stacklevel=stacklevel,
        )
