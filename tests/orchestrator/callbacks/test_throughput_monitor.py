"""What ThroughputMonitor sends to the loggers, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import Tensor

from orchestrator.callbacks import ThroughputMonitor
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import CSVLogger, DummyLogger
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, Validated, loader, quiet_trainer


class Keeps(DummyLogger):
    """A logger that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.sent.append((step or 0, dict(metrics)))


def size(batch: Any) -> int:
    """The samples of a batch."""
    return len(batch[0])


def monitor(**arguments: Any) -> ThroughputMonitor:
    """A monitor of samples that looks back on two batches."""
    return ThroughputMonitor(size, window_size=2, **arguments)


def test_training_logs_at_log_points() -> None:
    """Every log_every_n_steps steps the totals and rates go out, under train and at that step."""
    logger = Keeps()
    quiet_trainer(monitor(length_fn=lambda batch: 10 * size(batch)), logger=logger, log_every_n_steps=2).fit(
        Tiny(), loader(24)
    )
    steps = [step for step, _ in logger.sent]
    assert steps == [1, 3, 5]
    last = logger.sent[-1][1]
    assert (last["train/batches"], last["train/samples"], last["train/lengths"]) == (6, 24, 240)
    assert last["train/device/items_per_sec"] == pytest.approx(10 * last["train/device/samples_per_sec"])


def test_a_window_of_batches_logs_once() -> None:
    """With accumulation a step that is a log point logs once, after its last batch."""
    logger = Keeps()
    quiet_trainer(monitor(), logger=logger, log_every_n_steps=1, accumulate_grad_batches=3).fit(
        Tiny(), loader(24)
    )
    assert [(step, values["train/batches"]) for step, values in logger.sent] == [(0, 3), (1, 6)]


def test_evaluation_is_counted_apart() -> None:
    """Validation within fit, testing and prediction log under their own names; the sanity check does not."""
    logger = Keeps()
    trainer = quiet_trainer(
        monitor(separator="."), logger=logger, log_every_n_steps=2, num_sanity_val_steps=1
    )
    trainer.fit(Validated(), loader(8), loader(16))
    names = {name for _, values in logger.sent for name in values if name.endswith(".batches")}
    assert names == {"train.batches", "validate.batches"}
    logger.sent.clear()
    trainer.test(Validated(), loader(16), verbose=False)
    trainer.predict(Validated(), loader(16))
    found = [name for _, values in logger.sent for name in values if name.endswith(".batches")]
    assert found == ["test.batches"] * 2 + ["predict.batches"] * 2


def test_flops_give_mfu() -> None:
    """A module that says how many operations a batch takes gets their rate and its share of the peak."""

    class Counted(Tiny):
        flops_per_batch = 1000

    logger = Keeps()
    quiet_trainer(monitor(available_flops=1e12), logger=logger, log_every_n_steps=1).fit(
        Counted(), loader(16)
    )
    last = logger.sent[-1][1]
    assert last["train/device/mfu"] == pytest.approx(last["train/device/flops_per_sec"] / 1e12)
    assert last["train/device/flops_per_sec"] > 0


def test_nothing_is_done_without_a_logger() -> None:
    """Without loggers the functions of the batch are never called."""

    def never(batch: Any) -> int:
        raise AssertionError

    quiet_trainer(ThroughputMonitor(never)).fit(Tiny(), loader(8))


def test_no_value_is_read_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step makes no host wait for a tensor, also at log points."""
    reads: list[str] = []
    for name in ("item", "tolist", "cpu", "numpy"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda *a, _name=name, _call=original, **k: (reads.append(_name), _call(*a, **k))[1]
        )
    trainer = quiet_trainer(logger=Keeps(), log_every_n_steps=1)
    trainer.fit(Tiny(), loader(16))
    without, reads[:] = list(reads), []
    trainer = quiet_trainer(monitor(), logger=Keeps(), log_every_n_steps=1)
    trainer.fit(Tiny(), loader(16))
    assert reads == without


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batch_size_fn": 3}, "batch_size_fn=3"),
        ({"batch_size_fn": size, "length_fn": "x"}, "length_fn='x'"),
        ({"batch_size_fn": size, "window_size": 1}, "window_size=1"),
        ({"batch_size_fn": size, "available_flops": -1}, "available_flops=-1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], named: str) -> None:
    """What is no function or no number is refused by name."""
    with pytest.raises(MisconfigurationError, match=rf"ThroughputMonitor\({named}\)"):
        ThroughputMonitor(**arguments)


@pytest.mark.ray
def test_a_group_has_global_rates(tmp_path: Any) -> None:
    """On two ranks the global rate is twice rank 0's, and comes from rank 0 alone."""
    logger = CSVLogger(tmp_path)
    trainer = group_trainer(tmp_path, logger=logger, callbacks=[monitor()], log_every_n_steps=2, max_epochs=1)
    trainer.fit(Net(), group_loader(64))
    assert logger.log_dir is not None
    rows = (tmp_path / logger.log_dir / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    last = dict(zip(names, rows[2].split(","), strict=True))
    assert float(last["train/samples_per_sec"]) == pytest.approx(
        2 * float(last["train/device/samples_per_sec"])
    )
