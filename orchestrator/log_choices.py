"""How a metric was asked for: the arguments of `self.log`, checked once and made explicit.

The first call of `self.log` under a name in a hook decides; the arguments are then only compared, not looked
at again. Everything that cannot work is a `MisconfigurationError` that names the argument as it was written.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from orchestrator import log_hooks
from orchestrator.errors import MisconfigurationError

REDUCTIONS = ("mean", "sum", "min", "max")
ARGUMENTS = (
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "reduce_fx",
    "sync_dist",
    "sync_dist_group",
    "add_dataloader_idx",
    "metric_attribute",
    "rank_zero_only",
)
"""The arguments that must stay the same from call to call, in the order in which they are compared."""

_TRUTHS: dict[str, tuple[bool | None, ...]] = {
    **dict.fromkeys(("prog_bar", "sync_dist", "add_dataloader_idx", "rank_zero_only"), (True, False)),
    **dict.fromkeys(("logger", "on_step", "on_epoch"), (True, False, None)),
}

_FUNCTIONS: tuple[tuple[Any, str], ...] = (
    (torch.mean, "mean"),
    (torch.sum, "sum"),
    (sum, "sum"),
    (torch.min, "min"),
    (min, "min"),
    (torch.max, "max"),
    (max, "max"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What one metric of one hook was asked for.

    Attributes:
        prog_bar: Show it in the progress display.
        logger: Send it to the loggers.
        on_step: Record values of steps.
        on_epoch: Record the reduction of the epoch.
        reduce: mean, sum, min or max.
        sync: Reduce over ranks; otherwise the first rank's value counts.
        ranks: With `sync`, the ranks over which; None for all.
        rank_zero_only: Logged on rank 0 only, so it cannot be monitored.
        attribute: Of a metric object, where in the module it is; None for numbers.
    """

    prog_bar: bool = False
    logger: bool = True
    on_step: bool = False
    on_epoch: bool = True
    reduce: str = "mean"
    sync: bool = False
    ranks: tuple[int, ...] | None = None
    rank_zero_only: bool = False
    attribute: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = {name: getattr(self, name) for name in _NAMES}  # all of them plain; called in every step
        values["ranks"] = None if self.ranks is None else list(self.ranks)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Choices:
        """Take back what `to_dict` returned."""
        ranks = values.get("ranks")
        return cls(**{**values, "ranks": None if ranks is None else tuple(ranks)})


_NAMES = tuple(item.name for item in fields(Choices))


def choose(name: Any, hook: str, arguments: tuple[Any, ...], attribute: str | None) -> Choices:
    """Return what `arguments` ask for in `hook`.

    Args:
        name: The metric's name, as the user wrote it.
        hook: A hook in which logging is allowed.
        arguments: In the order of `ARGUMENTS`.
        attribute: Of a metric object, where in the module it is; None for numbers.

    Raises:
        MisconfigurationError: They cannot work.
    """
    prog_bar, logger, on_step, on_epoch, reduce_fx, sync, group, add_idx, _, rank_zero_only = arguments
    if not isinstance(name, str):
        raise MisconfigurationError(f"self.log({name!r}, ...): the name must be a string.")
    if add_idx and "/dataloader_idx_" in name:
        raise MisconfigurationError(
            f"self.log({name!r}, ...) has a loader's number in its name, which is added where it belongs. "
            "Leave it out, or use add_dataloader_idx=False."
        )
    for option, value in zip(ARGUMENTS, arguments, strict=True):
        allowed = _TRUTHS.get(option)
        if allowed is not None and value not in allowed:
            raise MisconfigurationError(
                f"self.log({name!r}, {option}={value!r}). Use {' or '.join(map(str, allowed))}."
            )
    if hook in log_hooks.EPOCH_ONLY and on_step:
        raise MisconfigurationError(
            f"self.log({name!r}, on_step=True) in {hook}: there is no step. Leave on_step out."
        )
    if hook in log_hooks.EPOCH_ONLY and on_epoch is False:
        raise MisconfigurationError(
            f"self.log({name!r}, on_epoch=False) in {hook}: a value there is one of the epoch. "
            "Leave on_epoch out."
        )
    step = log_hooks.records_step(hook, None if on_step is None else bool(on_step))
    epoch = log_hooks.records_epoch(hook, None if on_epoch is None else bool(on_epoch))
    if not step and not epoch:
        raise MisconfigurationError(
            f"self.log({name!r}, on_step={on_step!r}, on_epoch={on_epoch!r}) in {hook} records nothing. "
            "Set one of the two to True."
        )
    return Choices(
        prog_bar=bool(prog_bar),
        logger=logger is None or bool(logger),
        on_step=step,
        on_epoch=epoch,
        reduce=_reduction(name, reduce_fx),
        sync=bool(sync),
        ranks=_ranks(name, group) if sync and group is not None else None,
        rank_zero_only=bool(rank_zero_only),
        attribute=attribute,
    )


def describe_change(earlier: tuple[Any, ...], now: tuple[Any, ...]) -> str:
    """Return in words how two tuples of `ARGUMENTS` differ."""
    return "; ".join(
        f"{name}={before!r} and then {after!r}"
        for name, before, after in zip(ARGUMENTS, earlier, now, strict=True)
        if before != after
    )


def _reduction(name: str, reduce_fx: Any) -> str:
    if isinstance(reduce_fx, str):
        word = {"avg": "mean"}.get(reduce_fx.lower(), reduce_fx.lower())
        if word in REDUCTIONS:
            return word
    for function, word in _FUNCTIONS:
        if reduce_fx is function:
            return word
    raise MisconfigurationError(
        f"self.log({name!r}, reduce_fx={reduce_fx!r}) is unknown. Use one of {', '.join(REDUCTIONS)}, or log "
        "a metric object, which knows how to reduce itself."
    )


def _ranks(name: str, group: Any) -> tuple[int, ...]:
    """Return the ranks of a process group; of one that this rank is no member of, this rank alone."""
    if not torch.distributed.is_initialized():
        return (0,)
    if group is torch.distributed.GroupMember.NON_GROUP_MEMBER:
        return (torch.distributed.get_rank(),)
    try:
        return tuple(torch.distributed.get_process_group_ranks(group))
    except Exception as error:
        raise MisconfigurationError(
            f"self.log({name!r}, sync_dist_group={group!r}) is no process group. "
            "Give one that torch.distributed.new_group returned, or leave it out."
        ) from error
