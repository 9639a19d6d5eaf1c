"""What ``self.log`` does: a slot per metric, found by one dictionary lookup, filled without waiting for the
device.

The first call under a name makes a slot and checks the arguments; later calls add to it. Values stay on
their device until a log point or the end of an epoch; then all slots are read with one copy to the host, and
`orchestrator.reporting` reduces them over ranks. A mean is weighted by batch size, so uneven batches and
ranks give the exact mean over samples. What cannot be recorded is a `MisconfigurationError` at the call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from orchestrator import log_hooks
from orchestrator.batch_size import find_batch_size, sizes_in
from orchestrator.errors import MisconfigurationError
from orchestrator.log_choices import Choices, choose, describe_change
from orchestrator.log_reduction import Record
from orchestrator.log_values import number, one_element, size, to_host
from orchestrator.metric_objects import MetricObjects, is_metric
from orchestrator.slot import Slot
from orchestrator.strategies.strategy import Strategy

T = TypeVar("T")


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

    Args:
        objects: The metric objects of the module.
        told: What the user was told in this run and need not be told again.

    Attributes:
        table: The table of the hook that is running; None where logging is not allowed.
        batch: The batch that is being worked on.
        batch_size: Its number of samples, 0 while nobody has asked.
        where: What is running, in words.
    """

    def __init__(self, objects: MetricObjects | None = None, told: set[str] | None = None) -> None:
        self.objects = MetricObjects(nn.Module()) if objects is None else objects
        self.told: set[str] = set() if told is None else told
        self._tables: dict[tuple[str, str], Table] = {}
        self._slots: list[Slot] = []
        self._updated_before: frozenset[str] | None = None
        self.table: Table | None = None
        self.batch: Any = None
        self.batch_size: int = 0
        self.where = ""

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
        self.table = self.table_for(hook, suffix) if hook in log_hooks.ALLOWED else None

    # ---------------------------------------------------------------- what comes in

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
        sync_dist_group: Any,
        add_dataloader_idx: bool,
        batch_size: int | None,
        metric_attribute: str | None,
        rank_zero_only: bool,
    ) -> None:
        """Take a value; see `LightningModule.log` for the arguments."""
        table = self.table
        arguments = (
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            sync_dist,
            sync_dist_group,
            add_dataloader_idx,
            metric_attribute,
            rank_zero_only,
        )
        try:
            slot = table[name]  # type: ignore[index]
            if slot.arguments != arguments:
                if slot.arguments is not None:
                    raise MisconfigurationError(
                        f"self.log({slot.name!r}, ...) was called in {slot.hook} with "
                        f"{describe_change(slot.arguments, arguments)}. "
                        "Use the same arguments each time, or another name."
                    )
                slot.arguments = arguments
        except (KeyError, TypeError):
            slot = self._make(table, name, value, arguments)
        weight: float = 1
        if slot.weighs:
            if batch_size is None:
                weight = self.batch_size or self._measure_batch(name)
            else:
                weight = (
                    batch_size if batch_size.__class__ is int and batch_size >= 0 else size(name, batch_size)
                )
        if slot.attribute is not None:
            self._add_metric(slot, slot.attribute, value)
        elif value.__class__ is float:
            slot.add_number(value, weight)
        elif isinstance(value, Tensor):
            if value.ndim:
                value = one_element(name, value)
            slot.add_tensor(value.detach(), weight)
        elif is_metric(value):
            raise _other_kind(slot)
        else:
            slot.add_number(number(name, value), weight)

    def _add_metric(self, slot: Slot, attribute: str, metric: Any) -> None:
        if slot.metric is not metric and self.objects.at(attribute) is not metric:
            raise _other_kind(slot)
        slot.add_metric(metric)

    def _measure_batch(self, name: str) -> int:
        """Return the number of samples in the batch, and remember it until the next one."""
        if self.batch is None:
            return 1
        found = find_batch_size(self.batch)
        if found is None:
            raise MisconfigurationError(
                f"self.log({name!r}, ...) cannot tell how many samples weigh in this value: there is no "
                f"tensor in the batch, a {type(self.batch).__name__}. Write batch_size=..."
            )
        looked_at = f"batch of {self.where if self.table is None else self.table.hook}"
        if looked_at not in self.told:  # batches of a run are alike
            self.told.add(looked_at)
            sizes = sizes_in(self.batch)
            if len(sizes) > 1 and "batch size" not in self.told:
                self.told.add("batch size")
                warnings.warn(
                    f"self.log({name!r}, ...) weighs values by the number of samples, and the tensors of a "
                    f"batch have {', '.join(map(str, sizes))} rows: the first, {found}, is taken. "
                    "Write batch_size=... to say it.",
                    stacklevel=4,
                )
        self.batch_size = found
        return found

    def _make(self, table: Table | None, name: str, value: Any, arguments: tuple[Any, ...]) -> Slot:
        if table is None:
            raise MisconfigurationError(
                f"self.log({name!r}, ...) is not allowed in {self.where or 'this place'}. "
                "Call it in a step, a batch hook or an epoch hook."
            )
        attribute = None
        if isinstance(name, str) and not isinstance(value, (Tensor, float)) and is_metric(value):
            attribute = self.objects.attribute_of(name, value, arguments[8])
        choices = choose(name, table.hook, arguments, attribute)
        suffix = table.suffix if arguments[7] else ""
        if suffix == "" and table.suffix:
            twin = next(
                (other for other in self._slots if other.name == name and other.hook == table.hook), None
            )
            if twin is not None:
                raise MisconfigurationError(
                    f"self.log({name!r}, add_dataloader_idx=False) is called for several loaders. Use a "
                    "name per loader."
                )
        slot = Slot(name + suffix, table.hook, choices, arguments, suffix=suffix, loader=table.suffix)
        slot.metric = None if attribute is None else value
        table[name] = slot
        self._slots.append(slot)
        return slot

    def clear(self) -> None:
        """Forget all values, and reset the metric objects that were logged; slots stay."""
        used = [slot for slot in self._slots if slot.updates or slot.computed is not None]
        self.objects.reset(slot.attribute for slot in used if slot.attribute is not None)
        for slot in self._slots:
            slot.clear()

    # ---------------------------------------------------------------- reading

    def all_slots(self) -> Iterator[Slot]:
        """Yield every slot."""
        return iter(self._slots)

    def stepped(self) -> list[Slot]:
        """Return the slots that have a value of a step."""
        return [slot for slot in self._slots if slot.stepped]

    def read_steps(self, slots: Iterable[Slot], also: Tensor | None = None) -> list[float]:
        """Return the last step values of `slots`, with one copy to the host; `also` comes last."""
        chosen = list(slots)
        tensors = [slot.newest() for slot in chosen]
        numbers = [slot.host_last for slot in chosen]
        return to_host([*tensors, also], [*numbers, 0.0]) if also is not None else to_host(tensors, numbers)

    def epoch_slots(self) -> Iterator[Slot]:
        """Yield the slots that record epochs."""
        return (slot for slot in self._slots if slot.on_epoch)

    def epoch_records(self) -> list[Record]:
        """Return what this rank has of numbers for the epoch, with one copy to the host."""
        chosen = [slot for slot in self.epoch_slots() if slot.updates and slot.attribute is None]
        totals = to_host([slot.total for slot in chosen], [0.0] * len(chosen))
        return [slot.record(total) for slot, total in zip(chosen, totals, strict=True)]

    def wanted_metrics(self) -> dict[str, Any]:
        """Return the metric objects that were logged for the epoch since they were last computed."""
        wanted = [slot for slot in self.epoch_slots() if slot.fresh]
        if wanted:
            self.objects.share_states()
        paths = dict.fromkeys(slot.attribute for slot in wanted if slot.attribute is not None)
        return {path: self.objects.at(path) for path in paths}

    def take_computed(self, values: dict[str, float]) -> dict[tuple[str, str], float]:
        """Note the `values` of metric objects by path; return all that are known, by name and hook."""
        for slot in self.epoch_slots():
            if slot.attribute in values:
                slot.computed, slot.fresh = values[slot.attribute], False
        return {
            (slot.name, slot.hook): slot.computed for slot in self.epoch_slots() if slot.computed is not None
        }

    # ---------------------------------------------------------------- among ranks

    def gather(self, strategy: Strategy, take: Callable[[], T]) -> list[T]:
        """Return what `take` returns on each rank, by rank. Communicates."""
        return strategy.gather(take())

    def end_steps(self) -> None:
        """Note that the values of steps have been told; those that were read say so themselves."""

    def for_evaluation(self) -> LogSlots:
        """Return slots for an evaluation, over the same metric objects."""
        return LogSlots(self.objects, self.told)

    def announce(self) -> list[dict[str, Any]]:
        """Return how the slots were asked for that the other ranks may not know yet."""
        new = [slot for slot in self._slots if not slot.announced and slot.updates]
        for slot in new:
            slot.announced = True
        return [
            {
                "name": slot.name,
                "hook": slot.hook,
                "suffix": slot.suffix,
                "loader": slot.loader,
                "double": slot.dtype is torch.float64,
                "choices": slot.choices,
            }
            for slot in new
        ]

    def adopt(self, descriptions: Iterable[dict[str, Any]]) -> None:
        """Make the slots that other ranks have and this one lacks: all ranks know the same metrics."""
        known = {(slot.name, slot.hook) for slot in self._slots}
        for item in descriptions:
            if (item["name"], item["hook"]) in known:
                continue
            known.add((item["name"], item["hook"]))
            slot = Slot(
                item["name"], item["hook"], item["choices"], suffix=item["suffix"], loader=item["loader"]
            )
            slot.dtype = torch.float64 if item["double"] else torch.float32
            slot.announced = True
            self._keep(slot)

    def _keep(self, slot: Slot) -> None:
        self.table_for(slot.hook, slot.loader)[slot.name.removesuffix(slot.suffix)] = slot
        self._slots.append(slot)

    # ---------------------------------------------------------------- checkpoints

    def pause(self, evaluating: bool) -> None:
        """Say that an evaluation begins or has ended: what metric objects see in it is not training's."""
        self._updated_before = self.objects.updated() if evaluating else None

    def state(self, *, objects: bool = True) -> dict[str, Any]:
        """Return what this rank has for the epoch so far, as plain values and tensors, with one copy to the
        host.

        Args:
            objects: Look for metric objects in the module; False where it is known to have none.
        """
        chosen = [slot for slot in self._slots if slot.stepped or (slot.on_epoch and slot.updates)]
        if not (chosen or objects):
            return {"slots": [], "metrics": {}}
        tensors = [slot.total for slot in chosen] + [slot.newest() for slot in chosen]
        numbers = to_host(tensors, [0.0] * len(chosen) + [slot.host_last for slot in chosen])
        slots = [
            {
                "hook": slot.hook,
                "name": slot.name,
                "choices": slot.choices.to_dict(),
                "total": None if slot.total is None else total,
                "last": last,
                "last_weight": slot.last_weight,
                "stepped": slot.stepped,
                "host_sum": slot.host_sum,
                "weight": slot.weight,
                "updates": slot.updates,
                "double": slot.dtype is torch.float64,
            }
            for slot, total, last in zip(chosen, numbers[: len(chosen)], numbers[len(chosen) :], strict=True)
        ]
        if not objects:
            return {"slots": slots, "metrics": {}}
        updated = self.objects.updated() if self._updated_before is None else self._updated_before
        return {"slots": slots, "metrics": self.objects.states(updated)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned, and nothing else: logging goes on adding where it left off."""
        self._slots.clear()
        for table in self._tables.values():
            table.clear()
        for saved in state["slots"]:
            slot = Slot(saved["name"], saved["hook"], Choices.from_dict(saved["choices"]))
            if saved["total"] is not None:
                slot.total = torch.tensor(saved["total"], dtype=torch.float64)
            slot.host_sum, slot.weight, slot.updates = saved["host_sum"], saved["weight"], saved["updates"]
            slot.host_last, slot.stepped = saved["last"], saved["stepped"]
            slot.last_weight = saved["last_weight"]
            slot.dtype = torch.float64 if saved["double"] else torch.float32
            slot.fresh = slot.on_epoch and slot.attribute is not None
            self._keep(slot)
        self.objects.restore(state["metrics"])


def _other_kind(slot: Slot) -> MisconfigurationError:
    was = "a number" if slot.attribute is None else f"the metric {slot.attribute!r}"
    return MisconfigurationError(
        f"self.log({slot.name!r}, ...) in {slot.hook} was given {was} before, and now something else. "
        "Use the same each time, or another name."
    )
