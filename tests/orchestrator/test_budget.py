"""What a training step costs in calls, and that nothing in it waits for the device.

Calls are counted rather than seconds, so the tests say the same on any machine: those of Python functions and
of C functions that the profiler sees, for a tiny model, by the difference of two runs of unequal length.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import orchestrator as pl
from orchestrator.engine import Engine
from orchestrator.job import Job
from orchestrator.place import Place
from orchestrator.progress import ProgressRecord
from tests.orchestrator.tiny import FEATURES, Tiny, loss_of, points, quiet_trainer

CALLS_PER_STEP = 300
CALLS_OVER_PLAIN = 20
CALLS_PER_LOG = 15
NEVER = 10**9


def momentum(parameters: Any) -> torch.optim.Optimizer:
    """A usual optimizer."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


class Line(Tiny):
    """One linear layer: nearly all that a step costs is the framework's."""

    def __init__(self) -> None:
        super().__init__(momentum)
        self.net = torch.nn.Linear(FEATURES, 1)  # type: ignore[assignment]


class Logs(Line):
    """Logs so many metrics a step, for step, epoch and progress display."""

    def __init__(self, metrics: int = 5) -> None:
        super().__init__()
        self.names = [f"metric_{index}" for index in range(metrics)]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = loss_of(self.net, batch)
        for name in self.names:
            self.log(name, loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss


def data(steps: int) -> Any:
    """A DataLoader of so many batches."""
    return torch.utils.data.DataLoader(points(2 * steps), batch_size=2)


def calls(run: Callable[[], Any]) -> int:
    """How many calls `run` makes; those of the garbage collector come when they come and are kept out."""
    gc.collect()
    gc.disable()
    profile = cProfile.Profile()
    profile.enable()
    try:
        run()
    finally:
        profile.disable()
        gc.enable()
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def calls_per_step(run: Callable[[int], Any]) -> int:
    """What one more step costs, in calls, once everything is warm, to a whole call. What is done once in a
    while by the clock, whatever the number of steps, is left out: waits for data are looked at once a second.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.goodput.EVERY_S", float("inf"))
        run(10)
        return round((calls(lambda: run(150)) - calls(lambda: run(50))) / 100)


def fit(module: pl.LightningModule, steps: int, **arguments: Any) -> None:
    quiet_trainer(log_every_n_steps=NEVER, **arguments).fit(module, data(steps))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"accumulate_grad_batches": 4},
        {"precision": "bf16-mixed"},
    ],
    ids=lambda arguments: "-".join(arguments) or "plain",
)
def test_a_step_costs_few_calls(arguments: dict[str, Any]) -> None:
    """A step without logging makes at most 300 calls, model, optimizer and loader included."""
    assert calls_per_step(lambda steps: fit(Line(), steps, **arguments)) <= CALLS_PER_STEP


def test_a_step_by_hand_costs_few_calls() -> None:
    """Manual optimization, and a loss with a count, stay within the budget of a step."""

    class ByHand(Line):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, batch))
            optimizer.step()

    class Counted(Line):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss_sum": loss_of(self.net, batch) * 2, "loss_count": 2}

    for kind in (ByHand, Counted):
        assert calls_per_step(lambda steps, kind=kind: fit(kind(), steps)) <= CALLS_PER_STEP  # type: ignore[misc]


def test_the_loop_itself_costs_next_to_nothing() -> None:
    """A step makes at most twenty calls more than the same step in a plain loop."""

    def plain(steps: int) -> None:
        net = torch.nn.Linear(FEATURES, 1)
        optimizer = momentum(net.parameters())
        for batch in data(steps):
            loss_of(net, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    ours = calls_per_step(lambda steps: fit(Line(), steps))
    assert ours - calls_per_step(plain) <= CALLS_OVER_PLAIN


@pytest.mark.parametrize("kind", ["tensor", "number"])
def test_logging_costs_few_calls(kind: str) -> None:
    """Each self.log in a step makes at most fifteen calls, for a tensor as for a number."""

    class LogsKind(Logs):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = loss_of(self.net, batch)
            for name in self.names:
                value = loss if kind == "tensor" else 0.5
                self.log(name, value, on_step=True, on_epoch=True, prog_bar=True)
            return loss

    without = calls_per_step(lambda steps: fit(LogsKind(0), steps))
    assert calls_per_step(lambda steps: fit(LogsKind(5), steps)) - without <= 5 * CALLS_PER_LOG


def test_a_hook_that_nobody_overrides_costs_nothing() -> None:
    """A callback without the hooks of a step, and a longer list of callbacks, add no call to a step."""
    alone = calls_per_step(lambda steps: fit(Line(), steps))
    crowd = [pl.Callback() for _ in range(10)]

    def with_callbacks(steps: int) -> None:
        quiet_trainer(*crowd, log_every_n_steps=NEVER).fit(Line(), data(steps))

    assert calls_per_step(with_callbacks) == alone


class HostReads:
    """Counts what makes the host wait for a device: every way to read a tensor's value."""

    METHODS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "__array__")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count: Counter[str] = Counter()
        for name in self.METHODS:
            monkeypatch.setattr(Tensor, name, self._counting(name, getattr(Tensor, name)), raising=False)
        monkeypatch.setattr(Tensor, "to", self._counting_moves(Tensor.to))

    def _counting(self, name: str, original: Any) -> Any:
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.count[name] += 1
            return original(tensor, *args, **kwargs)

        return method

    def _counting_moves(self, original: Any) -> Any:
        def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if any(isinstance(item, (str, torch.device)) for item in (*args, *kwargs.values())):
                self.count["to"] += 1
            return original(tensor, *args, **kwargs)

        return to


class Marks(pl.Callback):
    """Notes how many reads there were before each step's end; takes part in every batch."""

    def __init__(self, reads: HostReads) -> None:
        self.reads = reads
        self.after_step: list[int] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.after_step.append(self.reads.count.total())


def run_with_display(module: pl.LightningModule, trainer: pl.Trainer, steps: int) -> list[ProgressRecord]:
    """fit, with a display that wants a record at every batch."""
    shown: list[ProgressRecord] = []
    engine = Engine(
        trainer, Job(fn="fit", module=module, loaders={"train": data(steps)}), Place(), shown.append
    )
    engine.progress_interval_s = 0.0
    engine.run()
    return shown


def test_nothing_is_read_from_the_device_between_log_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five metrics of step, epoch and display cost no read of a tensor but one at each log point."""
    reads = HostReads(monkeypatch)
    marks = Marks(reads)
    trainer = quiet_trainer(marks, log_every_n_steps=10)

    shown = run_with_display(Logs(), trainer, 40)

    between = [
        later - earlier for earlier, later in zip(marks.after_step, marks.after_step[1:], strict=False)
    ]
    log_points = {index for index in range(39) if (index + 1) % 10 == 0}
    assert [between[index] for index in range(39) if index not in log_points] == [0] * 36
    assert [between[index] for index in sorted(log_points)] == [1] * 3
    assert len(shown) == 41
    assert shown[-1].metrics.keys() == {
        f"metric_{index}_{kind}" for index in range(5) for kind in ("step", "epoch")
    }


def test_metric_objects_are_not_read_between_log_points_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric object of step, epoch and display costs no read of a tensor but those at log points."""

    class Counts(Line):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = pl.metrics.Accuracy()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.accuracy(batch[1], batch[1])
            self.log("accuracy", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
            return loss_of(self.net, batch)

    reads = HostReads(monkeypatch)
    marks = Marks(reads)
    run_with_display(Counts(), quiet_trainer(marks, log_every_n_steps=10), 30)
    between = [
        later - earlier for earlier, later in zip(marks.after_step, marks.after_step[1:], strict=False)
    ]
    assert [index for index, number in enumerate(between) if number] == [9, 19]
    assert {between[9], between[19]} == {1}


def test_an_evaluation_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of an evaluation are read with one copy at its end, however many there are."""

    class Evaluates(Logs):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss = loss_of(self.net, batch)
            for name in self.names:
                self.log(name, loss, prog_bar=True)

    trainer = quiet_trainer()
    reads = HostReads(monkeypatch)
    trainer.validate(Evaluates(), data(20), verbose=False)
    few = reads.count.copy()
    trainer.validate(Evaluates(), data(40), verbose=False)
    assert reads.count == {name: 2 * number for name, number in few.items()}
    assert few == {"tolist": 1}
