"""Finds the samples that make a loss jump, or a loss or a gradient infinite, while a stretch of a run is
run again.

The `Probe` looks at each training step's loss, on every rank, and at the gradients before the optimizer
steps. At the first that is bad it runs the training step again on parts of the batch, with the weights and
the random numbers of that moment: halves, and halves of bad halves, down to single samples. A part is
repeated to the size of the batch, so shapes stay, and BatchNorm works. Then it leaves training by
`PoisonFound`. Nothing of this belongs into a run that is to be kept: every step waits for its loss.

A batch whose samples cannot be told apart (no tensor whose first dimension is the batch) is found as a whole.
"""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modules import rng
from orchestrator.batch_size import find_batch_size
from orchestrator.callbacks.callback import Callback
from orchestrator.loss import is_sum

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer

LOOKS_BACK = 50
"""Losses before a step that it is compared with."""
FAR = 6.0
"""A loss jumps that is further above the median of those before than so many of their usual distances."""
_ENOUGH = 10
MOST_SAMPLES = 8
"""Samples of one batch that are found for a jump, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What has made a step bad.

    Attributes:
        what: What was bad: ``loss`` or ``gradients``.
        value: The step's loss.
        usual: The median of the losses before it; None where there were none.
        step: The optimizer step, as loggers count it, from 0.
        epoch: The epoch.
        batch_idx: The batch of the epoch.
        rank: The rank, under ``strategy="elastic"`` the logical rank, whose batch it was.
        size: Samples in the batch; None where they cannot be told apart.
        samples: The places in the batch of those that are to blame.
        alone: The loss of these alone.
        rest: The loss of the others; None where there are none.
    """

    what: str
    value: float
    usual: float | None
    step: int
    epoch: int
    batch_idx: int
    rank: int
    size: int | None
    samples: tuple[int, ...]
    alone: float
    rest: float | None

    @property
    def spoilt_before(self) -> bool:
        """Whether most of the batch is bad by itself, so that the weights and no sample are to blame."""
        return self.size is not None and 2 * len(self.samples) > self.size > 1


class PoisonFound(Exception):
    """Leaves the training that is looked at.

    Attributes:
        finding: What was found.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding


# ---------------------------------------------------------------- decisions


def jumps(value: float, before: Sequence[float]) -> bool:
    """Whether a loss is not finite, or far above those before it, of which at least three are needed.

    >>> jumps(9.0, [1.0, 1.2, 0.9, 1.1]), jumps(1.3, [1.0, 1.2, 0.9, 1.1]), jumps(float("nan"), [])
    (True, False, True)
    """
    if not math.isfinite(value):
        return True
    known = [item for item in before[-LOOKS_BACK:] if math.isfinite(item)]
    if len(known) < 3:
        return False
    middle = statistics.median(known)
    distance = statistics.median([abs(item - middle) for item in known])
    least = 0.1 if len(known) >= _ENOUGH else 0.4  # of the median: few losses say little of how far they go
    return value - middle > FAR * max(1.4826 * distance, least * abs(middle))


def narrow(places: Sequence[int], is_bad: Callable[[Sequence[int]], bool]) -> list[int]:
    """Return the places that are bad by themselves, of places that are bad together; all of them where no
    half is.

    >>> narrow(range(8), lambda part: bool({2, 5} & set(part)))
    [2, 5]
    """
    if len(places) == 1:
        return list(places)
    middle = len(places) // 2
    found = [
        item for half in (places[:middle], places[middle:]) if is_bad(half) for item in narrow(half, is_bad)
    ]
    return found or list(places)


def heaviest(places: Sequence[int], loss: Callable[[Sequence[int]], float]) -> int:
    """Return the place that weighs most, by going into the half with the greater loss.

    >>> heaviest(range(8), lambda part: sum(part) / len(part))
    7
    """
    while len(places) > 1:
        middle = len(places) // 2
        places = max((places[:middle], places[middle:]), key=loss)
    return places[0]


def part_of(batch: Any, places: Sequence[int], size: int) -> Any:
    """Return a batch of `size` samples that consists of those at `places`, again and again.

    Args:
        batch: Tensors whose first dimension is the batch, and lists of samples, nested in any way.
        places: Of samples.
        size: Samples in `batch`.
    """
    chosen = [places[index % len(places)] for index in range(size)]

    def take(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item[torch.tensor(chosen, device=item.device)] if item.ndim and len(item) == size else item
        if isinstance(item, dict):
            return type(item)({key: take(value) for key, value in item.items()})
        if isinstance(item, (list, tuple)):
            holds = any(find_batch_size(part) == size for part in item if not isinstance(part, str))
            parts = [take(part) for part in item] if holds or len(item) != size else [item[i] for i in chosen]
            return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
        return item

    return take(batch)


# ---------------------------------------------------------------- the look on


@dataclass(slots=True)
class _Ran:
    """One batch that was run with the weights of now."""

    arguments: tuple[Any, ...]
    batch_idx: int
    random: dict[str, Any]
    rank: int
    value: float


class Probe(Callback):
    """Watches a stretch of training for the first bad step.

    Args:
        known: Losses of the steps before the stretch.
        first: The first step that is judged, as loggers count it.
        named: The step that was asked for: if none before it is bad, the sample of it that weighs most is
            found though its loss may not be bad, where there is one rank. None asks for none.
        rank: The rank whose batches are judged; None for all.
    """

    def __init__(
        self, known: Sequence[float] = (), first: int = 0, named: int | None = None, rank: int | None = None
    ) -> None:
        self._known = list(known)
        self._first, self._named, self._rank = first, named, rank
        self._losses: dict[int, list[float]] = {}
        self._window: list[_Ran] = []
        self._own: Callable[..., Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look on at the module's training step from here on."""
        own = self._own = pl_module.training_step

        @functools.wraps(own)
        def watched(*arguments: Any) -> Any:
            return self._watch(trainer, pl_module, arguments)

        pl_module.__dict__["training_step"] = watched

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look away."""
        pl_module.__dict__.pop("training_step", None)
        self._own, self._window = None, []

    def _watch(self, trainer: Trainer, module: LightningModule, arguments: tuple[Any, ...]) -> Any:
        assert self._own is not None
        before = rng.capture()
        outputs = self._own(*arguments)
        loss = loss_in(outputs)
        if loss is None:
            return outputs
        rank, value = trainer.global_rank, float(loss)
        ran = _Ran(arguments, trainer.state.epoch_batches, before, rank, value)
        losses = self._losses.setdefault(rank, list(self._known))
        if self._judges(trainer, rank):
            asked_for = trainer.state.windows == self._named and trainer.world_size == 1
            if asked_for or jumps(value, losses):
                raise PoisonFound(self._blame_loss(trainer, module, ran, losses))
        losses.append(value)
        self._window.append(ran)
        return outputs

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at the gradients; which batch of which rank has spoilt them, each rank finds out by itself."""
        window, self._window = self._window, []
        if trainer.precision == "16-mixed":  # infinite ones are passed over there, and no fault
            return
        gradients = [item.grad for item in pl_module.parameters() if item.grad is not None]
        if all(bool(torch.isfinite(item).all()) for item in gradients):
            return
        for ran in window:
            if not self._judges(trainer, ran.rank):
                continue
            size = _size(ran)
            everything = range(size or 1)
            if not math.isfinite(self._try(trainer, pl_module, ran, everything, gradients=True)):
                found = narrow(
                    everything,
                    lambda part, ran=ran: (
                        not math.isfinite(  # type: ignore[misc]
                            self._try(trainer, pl_module, ran, part, gradients=True)
                        )
                    ),
                )
                losses = self._losses.get(ran.rank, [])[: -len(window)]
                raise PoisonFound(self._finding("gradients", trainer, pl_module, ran, losses, found))

    def _judges(self, trainer: Trainer, rank: int) -> bool:
        return trainer.state.windows >= self._first and self._rank in (None, rank)

    def _blame_loss(
        self, trainer: Trainer, module: LightningModule, ran: _Ran, losses: Sequence[float]
    ) -> Finding:
        def loss(places: Sequence[int]) -> float:
            return self._try(trainer, module, ran, places)

        places = list(range(_size(ran) or 1))
        if not math.isfinite(ran.value):
            found = narrow(places, lambda part: not math.isfinite(loss(part)))
            return self._finding("loss", trainer, module, ran, losses, found)
        found = []
        while len(found) < min(MOST_SAMPLES, len(places)):
            rest = [item for item in places if item not in found]
            if found and not jumps(loss(rest), losses):
                break
            found.append(heaviest(rest, loss))
        return self._finding("loss", trainer, module, ran, losses, sorted(found))

    def _finding(
        self,
        what: str,
        trainer: Trainer,
        module: LightningModule,
        ran: _Ran,
        losses: Sequence[float],
        found: Sequence[int],
    ) -> Finding:
        size = _size(ran)
        rest = [item for item in range(size or 0) if item not in found]
        known = [item for item in losses[-LOOKS_BACK:] if math.isfinite(item)]
        return Finding(
            what=what,
            value=ran.value,
            usual=statistics.median(known) if known else None,
            step=trainer.state.windows,
            epoch=trainer.state.epoch,
            batch_idx=ran.batch_idx,
            rank=ran.rank,
            size=size,
            samples=tuple(found) if size else (),
            alone=self._try(trainer, module, ran, found),
            rest=self._try(trainer, module, ran, rest) if rest else None,
        )

    def _try(
        self,
        trainer: Trainer,
        module: LightningModule,
        ran: _Ran,
        places: Sequence[int],
        *,
        gradients: bool = False,
    ) -> float:
        """Return the loss of a part of a batch, as it was with the weights and random numbers of the step;
        with `gradients`, NaN where one of them is not finite."""
        assert self._own is not None and trainer.engine is not None
        size, (batch, *rest) = _size(ran), ran.arguments
        batch = batch if size is None else part_of(batch, places, size)
        sink, now = module.__dict__["_log_sink"], rng.capture()
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        module.__dict__["_log_sink"] = _drop
        rng.restore(ran.random)
        try:
            with (
                trainer.engine.precision.autocast or contextlib.nullcontext(),
                torch.set_grad_enabled(gradients),
            ):
                loss = loss_in(self._own(batch, *rest), detached=False)
            if loss is None:
                return math.nan
            if gradients:
                learning = [item for item in module.parameters() if item.requires_grad]
                found = torch.autograd.grad(loss, learning, allow_unused=True)
                if not all(bool(torch.isfinite(item).all()) for item in found if item is not None):
                    return math.nan
            return float(loss.detach())
        finally:
            module.__dict__["_log_sink"] = sink
            rng.restore(now)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(buffers[name])


def loss_in(outputs: Any, *, detached: bool = True) -> Tensor | None:
    """Return the loss in what a training step returned, if there is one."""
    if is_sum(outputs):
        loss = outputs["loss_sum"] / outputs["loss_count"]
    else:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    loss = loss.reshape(())
    return loss.detach() if detached else loss


def _size(ran: _Ran) -> int | None:
    return find_batch_size(ran.arguments[0])


def _drop(*arguments: Any) -> None:
    """Take what is logged, and keep nothing."""
