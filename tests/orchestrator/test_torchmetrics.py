"""Metrics of torchmetrics: merged over ranks by their own reductions, logged one by one or as collections."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import homecoming
from orchestrator.errors import MisconfigurationError
from orchestrator.metric_exchange import compute, shares
from tests.orchestrator.groups import Net, group_trainer, points
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.test_log import Memory, values
from tests.orchestrator.tiny import Tiny, loader, loss_of, quiet_trainer

pytestmark = pytest.mark.extras


def regression(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Predictions and targets."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(length, generator=generator)
    return target + 0.3 * torch.randn(length, generator=generator), target


def classes(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of three classes, and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(length, 3, generator=generator).softmax(1), torch.arange(length) % 3


def numbers(length: int, seed: int) -> tuple[Tensor]:
    """One tensor."""
    return (torch.randn(length, generator=torch.Generator().manual_seed(seed)),)


def kept(kind: str | None) -> Any:
    """A metric that keeps all inputs in a list, as whole numbers, with another reduction of the list."""
    import torchmetrics

    class Keeps(torchmetrics.Metric):
        full_state_update = False

        def __init__(self) -> None:
            super().__init__()
            self.add_state("seen", default=[], dist_reduce_fx=kind)
            self.add_state("never", default=[], dist_reduce_fx=kind)

        def update(self, given: Tensor) -> None:
            self.seen.append((given * 100).long())

        def compute(self) -> Tensor:
            seen = torch.cat(list(self.seen)) if isinstance(self.seen, list) else self.seen
            assert seen.dtype is torch.int64
            return seen.sort().values[len(seen) // 2]

    return Keeps()


def build(name: str) -> Any:
    """A metric by name."""
    import torchmetrics as tm

    kinds: dict[str, Callable[[], Any]] = {
        "mean": tm.MeanMetric,
        "sum": tm.SumMetric,
        "min": tm.MinMetric,
        "max": tm.MaxMetric,
        "mse": tm.MeanSquaredError,
        "pearson": tm.PearsonCorrCoef,
        "spearman": tm.SpearmanCorrCoef,
        "accuracy": lambda: tm.Accuracy(task="multiclass", num_classes=3),
        "f1": lambda: tm.F1Score(task="multiclass", num_classes=3, average="macro"),
        "auroc": lambda: tm.AUROC(task="multiclass", num_classes=3),
        "composed": lambda: tm.MeanSquaredError() + 2 * tm.MeanAbsoluteError(),
        "minmax": lambda: tm.MinMaxMetric(tm.MeanSquaredError()),
        "kept": lambda: kept("cat"),
        "listed": lambda: kept(None),
    }
    return kinds[name]()


INPUTS = {
    **dict.fromkeys(["mean", "sum", "min", "max", "kept", "listed"], numbers),
    **dict.fromkeys(["mse", "pearson", "spearman", "composed", "minmax"], regression),
    **dict.fromkeys(["accuracy", "f1", "auroc"], classes),
}


def fed(name: str, batches: list[tuple[int, int]]) -> Any:
    """A metric that has seen batches of so many samples and such a seed."""
    metric = build(name)
    for length, seed in batches:
        metric.update(*INPUTS[name](length, seed))  # type: ignore[operator]
    return metric


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save")
@pytest.mark.parametrize("name", INPUTS)
def test_metrics_over_uneven_ranks_are_those_of_all_samples(name: str) -> None:
    """Ranks that have seen unequally much, and one that has seen nothing, find the value of all samples; each
    keeps what it has.
    """
    by_rank = [[(8, 1), (5, 2), (9, 3)], [], [(7, 4)]]
    ranks = [fed(name, batches) for batches in by_rank]
    expected = fed(name, [batch for batches in by_rank for batch in batches]).compute()

    sent = [shares({"metric": metric})["metric"] for metric in ranks]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric in ranks:
            torch.testing.assert_close(compute(metric, sent), expected)

    ranks[0].update(*INPUTS[name](1, 5))  # type: ignore[operator]
    grown = fed(name, [*by_rank[0], (1, 5)]).compute()
    if name == "minmax":  # which remembers what it has computed
        torch.testing.assert_close(ranks[0].compute()["raw"], grown["raw"])
    else:
        torch.testing.assert_close(ranks[0].compute(), grown)


def test_a_metric_that_must_not_be_reduced_is_the_first_ranks() -> None:
    """With sync_on_compute=False a metric's value is that of the first rank on all ranks."""
    import torchmetrics

    ranks = [torchmetrics.SumMetric(sync_on_compute=False) for _ in range(2)]
    for rank, metric in enumerate(ranks):
        metric.update(1.0 + rank)
    sent = [shares({"metric": metric})["metric"] for metric in ranks]
    assert [compute(metric, sent).item() for metric in ranks] == [1.0, 1.0]


def test_states_that_metrics_share_are_sent_once() -> None:
    """Metrics of one compute group are sent as one set of tensors."""
    import torchmetrics as tm

    group = tm.MetricCollection(
        {kind: getattr(tm, kind)(task="multiclass", num_classes=3) for kind in ("Precision", "Recall")}
    )
    group.update(*classes(9, 1))
    sent = shares(dict(group.items(copy_state=False)))
    first, second = (sent[kind]["parts"][0]["state"] for kind in ("Precision", "Recall"))
    assert [first[key] is second[key] for key in first] == [True] * len(first)


class Collected(Tiny):
    """Logs a collection, whose members share states, by update or by forward."""

    def __init__(self, forward: bool) -> None:
        import torchmetrics as tm

        super().__init__()
        self.forwards = forward
        self.scores = tm.MetricCollection(
            {
                "mse": tm.MeanSquaredError(),
                "twin": tm.MeanSquaredError(),
                "mae": tm.MeanAbsoluteError(),
            },
            prefix="val_",
            postfix="_all",
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return loss_of(self.net, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        call = self.scores if self.forwards else self.scores.update
        call(self.net(batch[0]), batch[1])
        if batch_idx == 0 or self.forwards:
            self.log_dict(self.scores, on_step=True)


@pytest.mark.parametrize("forward", [False, True])
def test_a_collection_is_logged_under_its_members_names(forward: bool) -> None:
    """log_dict takes a collection: names have its prefix and postfix, values are those of the whole epoch,
    also of members that share states and of batches after the last call of log_dict.
    """
    trainer, module, memory = quiet_trainer(), Collected(forward), Memory()
    trainer = quiet_trainer(logger=memory)
    (found,) = trainer.validate(module, loader(10), verbose=False)
    inputs, targets = loader(10).dataset[:]
    error = (module.net(inputs) - targets).detach()
    assert found == pytest.approx(
        {
            "val_mse_all_epoch": error.square().mean().item(),
            "val_twin_all_epoch": error.square().mean().item(),
            "val_mae_all_epoch": error.abs().mean().item(),
        }
    )
    assert len(memory.of("val_mse_all_step")) == (3 if forward else 0)
    assert [item.update_count for item in module.scores.values()] == [0, 0, 0]


def test_a_metric_may_be_used_in_evaluation_and_training() -> None:
    """One that has counted in inference mode counts in training afterwards, and the other way round."""
    import torchmetrics as tm

    class Shared(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.error = tm.MeanSquaredError()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.error(self.net(batch[0]), batch[1])
            self.log("error", self.error, on_step=False, on_epoch=True)
            return loss_of(self.net, batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.error.update(self.net(batch[0]), batch[1])
            self.log("error", self.error)

    module, trainer = Shared(), quiet_trainer()
    first = trainer.validate(module, loader(10), verbose=False)
    trainer.fit(module, loader(10))
    assert trainer.callback_metrics["error"] > 0
    assert trainer.validate(module, loader(10), verbose=False) != first


@pytest.mark.parametrize("kind", ["collection", "several"])
def test_a_metric_that_computes_more_than_a_number_is_refused(kind: str) -> None:
    """A collection is for log_dict, and a metric that computes a dictionary cannot be logged."""
    import torchmetrics as tm

    class Logs(Tiny):
        def __init__(self) -> None:
            super().__init__()
            error = tm.MeanSquaredError()
            self.score = tm.MetricCollection([error]) if kind == "collection" else tm.MinMaxMetric(error)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.score.update(self.net(batch[0]), batch[1])
            self.log("score", self.score)

    with pytest.raises(MisconfigurationError, match=r"self\.log\('score', .*self\.log_dict"):
        quiet_trainer().validate(Logs(), loader(4), verbose=False)


class Scored(Net):
    """Logs torchmetrics' metrics in training and validation; rank 0 alone logs one that both count."""

    def __init__(self) -> None:
        import torchmetrics as tm

        super().__init__()
        self.train_accuracy = tm.Accuracy(task="multiclass", num_classes=2)
        self.scores = tm.MetricCollection(
            {
                kind: getattr(tm, kind)(task="multiclass", num_classes=2)
                for kind in ("Precision", "Recall", "AUROC")
            }
        )
        self.running = tm.RunningMean(window=3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.train_accuracy(torch.zeros_like(batch[1]), batch[1])
        self.running.update(3.0)
        if self.global_rank == 0:
            self.log("train_accuracy", self.train_accuracy, on_step=True, on_epoch=True)
            self.log("running", self.running, on_step=False, on_epoch=True)
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.scores.update(self(batch[0]).softmax(1), batch[1])
        self.log_dict(self.scores)


def test_a_metric_comes_home_without_its_place() -> None:
    """What a worker's metric has counted travels to the driver; on which device it was does not."""
    import torchmetrics as tm

    metric = tm.SumMetric()
    metric.update(3.0)
    travels = homecoming._attributes(metric)
    assert travels["sum_value"] == 3.0
    assert travels["_update_count"] == 1
    assert "_device" not in travels


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_come_home_on_the_cpu() -> None:
    """A tensor on a worker's GPU arrives on the CPU, since the driver may have no GPU."""
    (data,), left = homecoming._dump_all({"module:": {"kept": torch.ones(2, device="cuda")}}, {})
    assert left == []
    assert homecoming._load(data, {})["module:"]["kept"].device.type == "cpu"


@pytest.mark.ray
def test_metrics_of_a_group_are_those_of_all_samples(tmp_path: Path) -> None:
    """Two ranks with unequal validation data find torchmetrics' values of all samples; a metric that one rank
    logs holds all ranks' counts; afterwards the driver's metrics are reset.
    """
    import torchmetrics as tm

    module = Scored()
    trainer = group_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, group_loader(64), group_loader(29, 4))
    found = values(trainer.callback_metrics)

    labels = points(64)[:][1]
    assert found["train_accuracy"] == pytest.approx((labels == 0).float().mean().item())
    assert found["running"] == 3.0
    inputs, targets = points(29)[:]
    with torch.no_grad():
        scores = module(inputs).softmax(1)
    for kind in ("Precision", "Recall", "AUROC"):
        whole = getattr(tm, kind)(task="multiclass", num_classes=2)
        assert found[kind] == pytest.approx(whole(scores, targets).item())
    assert [item.update_count for item in (module.train_accuracy, *module.scores.values())] == [0] * 4
