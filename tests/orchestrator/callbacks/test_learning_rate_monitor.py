"""LearningRateMonitor: which names and values reach the loggers, at which steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.callbacks import LearningRateMonitor
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import CSVLogger
from tests.orchestrator.test_budget import Line, calls_per_step, data
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer


class Rows(CSVLogger):
    """Keeps what it is given."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def adam(parameters: Any, **scheduled: Any) -> Any:
    """Adam with a schedule that halves its rate."""
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), **scheduled},
    }


def groups(parameters: Any, *names: str) -> torch.optim.Optimizer:
    """SGD with two groups, of two rates."""
    first, *rest = list(parameters)
    found: list[dict[str, Any]] = [{"params": [first]}, {"params": rest, "lr": 0.2}]
    for group, name in zip(found, names, strict=False):
        group["name"] = name
    return torch.optim.SGD(found, lr=0.1)


def rows(root: Path, configure: Any, monitor: LearningRateMonitor, **arguments: Any) -> Any:
    logger = Rows(root)
    trainer = quiet_trainer(monitor, max_epochs=2, logger=logger, **{"log_every_n_steps": 1, **arguments})
    trainer.fit(Tiny(configure), loader(12))
    return logger.rows


def test_a_schedule_of_epochs_is_logged_by_epoch(tmp_path: Path) -> None:
    """A rate that changes with epochs is logged when they begin."""
    monitor = LearningRateMonitor()
    assert rows(tmp_path, adam, monitor) == [(0, {"lr-Adam": 0.1}), (3, {"lr-Adam": 0.05})]
    assert monitor.lrs == {"lr-Adam": [0.1, 0.05]}


def test_a_schedule_of_steps_is_logged_at_log_points(tmp_path: Path) -> None:
    """A rate that changes with steps is logged as it was used, under the schedule's name."""
    monitor = LearningRateMonitor(log_momentum=True, log_weight_decay=True)
    found = rows(tmp_path, lambda p: adam(p, interval="step", name="mine"), monitor, log_every_n_steps=2)
    others = {"mine-momentum": 0.9, "mine-weight_decay": 0.0}
    assert found == [(step, {"mine": 0.1 * 0.5**step, **others}) for step in (1, 3, 5)]
    assert monitor.last_momentum_values == {"mine": 0.9}
    assert monitor.last_weight_decay_values == {"mine": 0.0}


@pytest.mark.parametrize(
    ("interval", "steps"), [("step", [0, 1, 2, 3, 4, 5]), ("epoch", [0, 3]), (None, [0, 1, 2, 3, 4, 5])]
)
def test_an_optimizer_without_a_schedule(tmp_path: Path, interval: str | None, steps: list[int]) -> None:
    """It is logged at log points, or as often as was asked for."""
    found = rows(tmp_path, lambda p: torch.optim.SGD(p, lr=0.1), LearningRateMonitor(interval))
    assert found == [(step, {"lr-SGD": 0.1}) for step in steps]


@pytest.mark.parametrize(
    ("names", "expected"),
    [((), {"lr-SGD/pg1": 0.1, "lr-SGD/pg2": 0.2}), (("a", "b"), {"lr-SGD/a": 0.1, "lr-SGD/b": 0.2})],
)
def test_groups_have_names(tmp_path: Path, names: tuple[str, ...], expected: dict[str, float]) -> None:
    """Parameter groups are numbered, or called by their own names."""
    found = rows(tmp_path, lambda p: groups(p, *names), LearningRateMonitor("epoch"))
    assert [metrics for _, metrics in found] == [expected, expected]


def test_callbacks_see_the_rates(tmp_path: Path) -> None:
    """What is logged is among the callback metrics."""
    trainer = quiet_trainer(LearningRateMonitor(), logger=Rows(tmp_path))
    trainer.fit(Tiny(adam), loader(12))
    assert trainer.callback_metrics["lr-Adam"] == pytest.approx(0.1)


def test_a_step_at_which_nothing_is_due_costs_next_to_nothing(tmp_path: Path) -> None:
    """Between log points the hook is called and compares; where epochs alone are logged it is not called."""

    def cost(*monitors: LearningRateMonitor) -> int:
        def run(steps: int) -> None:
            quiet_trainer(*monitors, logger=Rows(tmp_path), log_every_n_steps=10**9).fit(Line(), data(steps))

        return calls_per_step(run)

    without = cost()
    assert cost(LearningRateMonitor("epoch")) == without
    # The hook, and what the loop does to say that a hook runs.
    assert cost(LearningRateMonitor("step")) <= without + 4


def test_what_cannot_be_logged_is_refused(tmp_path: Path) -> None:
    """A Trainer without a logger, an unknown interval and names that stand for two things are errors."""
    with pytest.raises(MisconfigurationError, match="logging_interval='batch'"):
        LearningRateMonitor("batch")
    with pytest.raises(MisconfigurationError, match=r"nothing to log to: Trainer\(logger=False\)"):
        quiet_trainer(LearningRateMonitor()).fit(Tiny(), loader(4))
    with pytest.raises(MisconfigurationError, match=r"names \['a', 'a'\]"):
        rows(tmp_path, lambda p: groups(p, "a", "a"), LearningRateMonitor())
