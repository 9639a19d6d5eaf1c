"""What ``self.log`` does: a slot per metric, found by one dictionary lookup, filled without waiting for the
device.

The first call under a name makes a slot and checks the arguments; later calls add to it. Values stay on
their device, in float64 where the device has it, until a log point or the end of an epoch; then all slots are
read with one copy to the host, and reduced over ranks with one exchange that also works when ranks have
logged different names. A mean is weighted by batch size, so uneven batches and ranks give the exact mean over
samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import MisconfigurationError

REDUCTIONS = ("mean", "sum", "min", "max")

_TRAIN_STEP = frozenset(
    {
        "training_step",
        "on_train_batch_start",
        "on_train_batch_end",
        "on_before_zero_grad",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "backward",
        "optimizer_step",
        "optimizer_zero_grad",
        "configure_gradient_clipping",
    }
)
_EVAL_STEP = frozenset(
    {
        f"{stage}_step" if kind is None else f"on_{stage}_batch_{kind}"
        for stage in ("validation", "test")
        for kind in (None, "start", "end")
    }
)
_EPOCH_ONLY = frozenset(
    {
        *(f"on_{stage}_start" for stage in ("train", "validation", "test")),
        *(
            f"on_{stage}_epoch_{kind}"
            for stage in ("train", "validation", "test")
            for kind in ("start", "end")
        ),
    }
)

Record = tuple[str, str, str, bool, float, float]
"""Of one slot: name, hook, reduction, reduce over ranks, value, weight."""

_CHOICES = ("prog_bar", "logger", "on_step", "on_epoch", "reduce", "sync", "rank_zero_only")
"""What a slot was asked for, and a checkpoint keeps."""


class Slot:
    """One metric of one hook: how it was asked for, and what has come in.

    Attributes:
        name: What it is called, `suffix` included.
        suffix: The part of the name that says which evaluation loader; empty where there is one.
        loader: The suffix of the loader that it was logged for, even where the name is without.
        flags: The arguments as the user wrote them; None in a slot from a checkpoint, until they are seen.
    """

    __slots__ = (
        "dtype",
        "extreme",
        "flags",
        "hook",
        "host_last",
        "host_sum",
        "last",
        "loader",
        "logger",
        "name",
        "on_epoch",
        "on_step",
        "prog_bar",
        "rank_zero_only",
        "reduce",
        "stepped",
        "suffix",
        "sync",
        "total",
        "updates",
        "weight",
    )

    def __init__(
        self,
        name: str,
        hook: str,
        flags: tuple[Any, ...] | None,
        *,
        prog_bar: bool,
        logger: bool,
        on_step: bool,
        on_epoch: bool,
        reduce: str,
        sync: bool,
        rank_zero_only: bool,
        suffix: str = "",
        loader: str = "",
    ) -> None:
        self.name = name
        self.suffix = suffix
        self.loader = loader
        self.hook = hook
        self.flags = flags
        self.prog_bar = prog_bar
        self.logger = logger
        self.on_step = on_step
        self.on_epoch = on_epoch
        self.reduce = reduce
        self.sync = sync
        self.rank_zero_only = rank_zero_only
        self.extreme = reduce in ("min", "max")
        self.dtype = torch.float32
        self.total: Tensor | None = None
        self.last: Tensor | None = None
        self.host_last = math.nan
        self.clear()

    @property
    def step_name(self) -> str:
        """What the value of a step is called."""
        return self._forked("_step") if self.on_epoch else self.name

    @property
    def epoch_name(self) -> str:
        """What the value of an epoch is called."""
        return self._forked("_epoch") if self.on_step else self.name

    def _forked(self, mark: str) -> str:
        return f"{self.name.removesuffix(self.suffix)}{mark}{self.suffix}"

    def clear(self) -> None:
        """Forget the epoch's values."""
        self.host_sum = 0.0 if not self.extreme else math.inf if self.reduce == "min" else -math.inf
        self.weight: float = 0.0
        self.updates = 0
        self.stepped = False
        if self.total is not None:
            self.total.fill_(self.host_sum)

    def add_number(self, value: float, weight: float) -> None:
        """Take a number of the host."""
        if self.on_step:
            self.host_last = value
            self.last = None
            self.stepped = True
        if self.on_epoch:
            if not self.extreme:
                self.host_sum += value * weight
            elif self.reduce == "min":
                self.host_sum = min(self.host_sum, value) if value == value else value
            else:
                self.host_sum = max(self.host_sum, value) if value == value else value
            self.weight += weight
        self.updates += 1

    def add_tensor(self, value: Tensor, weight: float) -> None:
        """Take a detached tensor of one element."""
        if self.on_step:
            if self.last is None:
                self.last = torch.empty((), dtype=_wide(self.name, value), device=value.device)
                if value.dtype is torch.float64:
                    self.dtype = torch.float64
            self.last.copy_(value)
            self.stepped = True
        if self.on_epoch:
            if self.total is None or self.total.device != value.device:
                self._make_total(value)
            if not self.extreme:
                self.total.add_(value, alpha=weight)  # type: ignore[union-attr]
            else:
                pick = torch.minimum if self.reduce == "min" else torch.maximum
                pick(self.total, value.to(self.total.dtype), out=self.total)  # type: ignore[union-attr, arg-type]
            self.weight += weight
        self.updates += 1

    def _make_total(self, value: Tensor) -> None:
        start = float(self.total) if self.total is not None else 0.0 if not self.extreme else self.host_sum
        self.total = torch.full((), start, dtype=_wide(self.name, value), device=value.device)
        if value.dtype is torch.float64:
            self.dtype = torch.float64


def _wide(name: str, value: Tensor) -> torch.dtype:
    if value.is_complex():
        raise MisconfigurationError(
            f"self.log({name!r}, ...) got a complex tensor. Log a number that is real, say by .abs()."
        )
    return torch.float32 if value.device.type == "mps" else torch.float64


class Table(dict[str, Slot]):
    """The slots of one hook and evaluation loader."""

    def __init__(self, hook: str, suffix: str) -> None:
        super().__init__()
        self.hook = hook
        self.suffix = suffix


class LogSlots:
    """All slots of one loop.

    The loop assigns `table`, `batch` and `batch_size` as it goes; these are plain attributes so that doing so
    costs nothing.

    Attributes:
        table: The table of the hook that is running; None where logging is not allowed.
        batch: The batch that is being worked on.
        batch_size: Its number of samples, 0 while nobody has asked.
        dirty: Something was logged for the epoch since the flag was last cleared.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[str, str], Table] = {}
        self._slots: list[Slot] = []
        self.table: Table | None = None
        self.batch: Any = None
        self.batch_size: int = 0
        self.where = ""
        self.dirty = False

    def table_for(self, hook: str, suffix: str = "") -> Table:
        """Return the table of `hook`; `suffix` distinguishes evaluation loaders."""
        key = (hook, suffix)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = Table(hook, suffix)
        return table

    def enter(self, hook: str, suffix: str = "") -> None:
        """Say which hook runs from now on."""
        self.where = hook
        allowed = hook in _TRAIN_STEP or hook in _EVAL_STEP or hook in _EPOCH_ONLY
        self.table = self.table_for(hook, suffix) if allowed else None

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool,
        logger: bool | None,
        on_step: bool | None,
        on_epoch: bool | None,
        reduce_fx: Any,
        sync_dist: bool,
        add_dataloader_idx: bool,
        batch_size: int | None,
        rank_zero_only: bool,
    ) -> None:
        """Take a value; see `LightningModule.log` for the arguments."""
        table = self.table
        flags = (
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            sync_dist,
            add_dataloader_idx,
            rank_zero_only,
        )
        try:
            slot = table[name]  # type: ignore[index]
            if slot.flags != flags:
                if slot.flags is not None:
                    raise _called_differently(slot, slot.flags, flags)
                slot.flags = flags
        except (KeyError, TypeError):
            slot = self._make(table, name, flags)
        weight: float = 1
        if slot.on_epoch:
            self.dirty = True
            if slot.reduce == "mean":
                weight = batch_size or self.batch_size
                if not weight:
                    weight = self.batch_size = batch_size_of(self.batch)
        if value.__class__ is float:
            slot.add_number(value, weight)
        elif isinstance(value, Tensor):
            if value.ndim:
                value = _one_element(name, value)
            slot.add_tensor(value.detach(), weight)
        else:
            slot.add_number(_number(name, value), weight)

    def _make(self, table: Table | None, name: str, flags: tuple[Any, ...]) -> Slot:
        prog_bar, logger, on_step, on_epoch, reduce_fx, sync, add_idx, rank_zero_only = flags
        if table is None:
            raise MisconfigurationError(
                f"self.log({name!r}, ...) is not allowed in {self.where or 'this place'}. "
                "Call it in a step, a batch hook or an epoch hook."
            )
        if not isinstance(name, str):
            raise MisconfigurationError(f"self.log({name!r}, ...): the name must be a string.")
        hook = table.hook
        reduce = {min: "min", max: "max", sum: "sum", torch.mean: "mean", torch.sum: "sum"}.get(
            reduce_fx, reduce_fx
        )
        if reduce in (torch.min, torch.max):
            reduce = "min" if reduce is torch.min else "max"
        if reduce not in REDUCTIONS:
            raise MisconfigurationError(
                f"self.log({name!r}, reduce_fx={reduce_fx!r}) is unknown. Use one of {', '.join(REDUCTIONS)}."
            )
        epoch_only = hook in _EPOCH_ONLY
        if epoch_only and on_step:
            raise MisconfigurationError(
                f"self.log({name!r}, on_step=True) in {hook}: there is no step. Leave on_step out."
            )
        step = hook in _TRAIN_STEP if on_step is None else bool(on_step)
        epoch = hook not in _TRAIN_STEP if on_epoch is None else bool(on_epoch)
        suffix = table.suffix if add_idx else ""
        slot = Slot(
            name + suffix,
            hook,
            flags,
            prog_bar=bool(prog_bar),
            logger=logger is None or bool(logger),
            on_step=step,
            on_epoch=epoch,
            reduce=reduce,
            sync=bool(sync),
            rank_zero_only=bool(rank_zero_only),
            suffix=suffix,
            loader=table.suffix,
        )
        if suffix == "" and table.suffix:
            twin = next((other for other in self._slots if other.name == name and other.hook == hook), None)
            if twin is not None:
                raise MisconfigurationError(
                    f"self.log({name!r}, add_dataloader_idx=False) is called for several loaders. Use a "
                    "name per loader."
                )
        table[name] = slot
        self._slots.append(slot)
        return slot

    def clear(self) -> None:
        """Forget all values; slots stay."""
        for slot in self._slots:
            slot.clear()
        self.dirty = False

    # ---------------------------------------------------------------- reading

    def stepped(self) -> list[Slot]:
        """Return the slots that have a value of a step."""
        return [slot for slot in self._slots if slot.stepped]

    def read_steps(self, slots: Iterable[Slot]) -> list[float]:
        """Return the last step values of `slots`, with one copy to the host."""
        chosen = list(slots)
        return _to_host([slot.last for slot in chosen], [slot.host_last for slot in chosen])

    def epoch_records(self) -> list[Record]:
        """Return what this rank has for the epoch, with one copy to the host."""
        chosen = [slot for slot in self._slots if slot.on_epoch and slot.updates]
        totals = _to_host([slot.total for slot in chosen], [0.0] * len(chosen))
        records: list[Record] = []
        for slot, total in zip(chosen, totals, strict=True):
            if slot.reduce == "min":
                value = slot.host_sum if slot.total is None else _least(total, slot.host_sum)
            elif slot.reduce == "max":
                value = slot.host_sum if slot.total is None else -_least(-total, -slot.host_sum)
            else:
                value = total + slot.host_sum
            records.append((slot.name, slot.hook, slot.reduce, slot.sync, value, slot.weight))
        return records

    def describe(self) -> list[dict[str, Any]]:
        """Return how the slots that `epoch_records` tells of were asked for, for ranks that lack them."""
        return [
            {
                "name": slot.name,
                "hook": slot.hook,
                "suffix": slot.suffix,
                "loader": slot.loader,
                "double": slot.dtype is torch.float64,
                **{choice: getattr(slot, choice) for choice in _CHOICES},
            }
            for slot in self._slots
            if slot.on_epoch and slot.updates
        ]

    def adopt(self, descriptions: Iterable[dict[str, Any]]) -> None:
        """Make the slots that other ranks have and this one lacks: all ranks know the same metrics."""
        known = {(slot.name, slot.hook) for slot in self._slots}
        for item in descriptions:
            if (item["name"], item["hook"]) in known:
                continue
            known.add((item["name"], item["hook"]))
            choices = {choice: item[choice] for choice in _CHOICES}
            slot = Slot(
                item["name"], item["hook"], None, suffix=item["suffix"], loader=item["loader"], **choices
            )
            slot.dtype = torch.float64 if item["double"] else torch.float32
            raw_name = slot.name.removesuffix(slot.suffix)
            self.table_for(slot.hook, slot.loader)[raw_name] = slot
            self._slots.append(slot)

    def epoch_slots(self) -> Iterator[Slot]:
        """Yield the slots that record epochs."""
        return (slot for slot in self._slots if slot.on_epoch)

    def state(self) -> list[dict[str, Any]]:
        """Return what this rank has for the epoch so far, as plain values, with one copy to the host."""
        chosen = [slot for slot in self._slots if slot.stepped or (slot.on_epoch and slot.updates)]
        tensors = [slot.total for slot in chosen] + [slot.last for slot in chosen]
        numbers = _to_host(tensors, [0.0] * len(chosen) + [slot.host_last for slot in chosen])
        return [
            {
                "hook": slot.hook,
                "name": slot.name,
                **{choice: getattr(slot, choice) for choice in _CHOICES},
                "total": None if slot.total is None else total,
                "last": last,
                "stepped": slot.stepped,
                "host_sum": slot.host_sum,
                "weight": slot.weight,
                "updates": slot.updates,
                "double": slot.dtype is torch.float64,
            }
            for slot, total, last in zip(chosen, numbers[: len(chosen)], numbers[len(chosen) :], strict=True)
        ]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Take back what `state` returned, and nothing else: logging goes on adding where it left off."""
        self._slots.clear()
        for table in self._tables.values():
            table.clear()
        for saved in state:
            slot = Slot(saved["name"], saved["hook"], None, **{choice: saved[choice] for choice in _CHOICES})
            if saved["total"] is not None:
                slot.total = torch.tensor(saved["total"], dtype=torch.float64)
            slot.host_sum, slot.weight, slot.updates = saved["host_sum"], saved["weight"], saved["updates"]
            slot.host_last, slot.stepped = saved["last"], saved["stepped"]
            slot.dtype = torch.float64 if saved["double"] else torch.float32
            self.table_for(slot.hook)[slot.name] = slot
            self._slots.append(slot)


def combine(records_by_rank: list[list[Record]]) -> dict[tuple[str, str], float]:
    """Return the value of each (name, hook): over ranks where asked for, else the first rank's that has it.

    Sums run in rank order, so the result is the same on every rank and in every run.
    """
    grouped: dict[tuple[str, str], list[Record]] = {}
    for records in records_by_rank:
        for record in records:
            grouped.setdefault((record[0], record[1]), []).append(record)
    values: dict[tuple[str, str], float] = {}
    for key, parts in grouped.items():
        _, _, reduce, sync, _, _ = parts[0]
        used = parts if sync else parts[:1]
        if reduce == "mean":
            weight = sum(part[5] for part in used)
            values[key] = sum(part[4] for part in used) / weight if weight else math.nan
        elif reduce == "sum":
            values[key] = sum(part[4] for part in used)
        elif reduce == "min":
            values[key] = _least(*(part[4] for part in used))
        else:
            values[key] = -_least(*(-part[4] for part in used))
    return values


def batch_size_of(batch: Any) -> int:
    """Return the first dimension of the first tensor found in `batch`; 1 when there is none."""
    todo = [batch]
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            return int(item.shape[0]) if item.ndim else 1
        if isinstance(item, str):
            return len(item)
        if isinstance(item, Mapping):
            todo.extend(reversed(list(item.values())))
        elif isinstance(item, (list, tuple)):
            todo.extend(reversed(item))
    return 1


def _to_host(tensors: list[Tensor | None], numbers: list[float]) -> list[float]:
    """Return the tensors' values, and the numbers where there is none, with one copy for each device."""
    values = list(numbers)
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor is not None:
            by_device.setdefault(tensor.device, []).append(index)
    for places in by_device.values():
        stacked = torch.stack([tensors[index] for index in places])  # type: ignore[misc]
        for index, value in zip(places, stacked.tolist(), strict=True):
            values[index] = value
    return values


def _least(*values: float) -> float:
    """Return the smallest value; NaN when any is."""
    return math.nan if any(value != value for value in values) else min(values)


def _one_element(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise MisconfigurationError(
            f"self.log({name!r}, ...) got a tensor of shape {tuple(value.shape)}. Log one number: reduce "
            "it first, say by .mean()."
        )
    return value.reshape(())


def _number(name: str, value: Any) -> float:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise MisconfigurationError(
            f"self.log({name!r}, {type(value).__name__}) cannot be recorded. Log a number or a tensor of "
            "one element."
        )
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        if value.bit_length() > 1023:
            raise MisconfigurationError(
                f"self.log({name!r}, ...) got a number of {value.bit_length()} bits: no float holds it. "
                "Log its logarithm."
            )
        warnings.warn(f"self.log({name!r}, {value}) is stored as a float and loses digits.", stacklevel=4)
    return float(value)


def _called_differently(
    slot: Slot, earlier: tuple[Any, ...], flags: tuple[Any, ...]
) -> MisconfigurationError:
    names = (
        "prog_bar",
        "logger",
        "on_step",
        "on_epoch",
        "reduce_fx",
        "sync_dist",
        "add_dataloader_idx",
        "rank_zero_only",
    )
    differing = [
        f"{name}={before!r} and then {now!r}"
        for name, before, now in zip(names, earlier, flags, strict=True)
        if before != now
    ]
    return MisconfigurationError(
        f"self.log({slot.name!r}, ...) was called in {slot.hook} with {'; '.join(differing)}. "
        "Use the same arguments each time, or another name."
    )
