"""self.log: what is recorded under which name, when it is read, and what is refused."""

from __future__ import annotations

import copy
import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.log_choices import Choices
from orchestrator.log_reduction import Record, combine
from orchestrator.log_slots import LogSlots
from orchestrator.loggers.logger import Logger
from tests.orchestrator.tiny import Tiny, Validated, loader, loss_of, quiet_trainer

TRAIN_STEP_HOOKS = [
    "on_train_batch_start",
    "training_step",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_step",
    "on_train_batch_end",
]
TRAIN_EPOCH_HOOKS = ["on_train_start", "on_train_epoch_start", "on_train_epoch_end"]
EVALUATION_STEP_HOOKS = ["on_{}_batch_start", "{}_step", "on_{}_batch_end"]
EVALUATION_EPOCH_HOOKS = ["on_{}_start", "on_{}_epoch_start", "on_{}_epoch_end"]
FORBIDDEN_IN_FIT = [
    "prepare_data",
    "setup",
    "configure_model",
    "configure_optimizers",
    "train_dataloader",
    "val_dataloader",
    "on_fit_start",
    "on_train_end",
    "on_fit_end",
    "on_validation_end",
    "lr_scheduler_step",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "teardown",
]
FORBIDDEN_IN_PREDICT = [
    "on_predict_start",
    "on_predict_epoch_start",
    "on_predict_batch_start",
    "predict_step",
    "on_predict_batch_end",
    "on_predict_epoch_end",
    "on_predict_end",
    "predict_dataloader",
]


class Everything(Validated):
    """Has data of its own: five batches for training, two for everything else, and a scheduler."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return loss_of(self.net, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return None

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def train_dataloader(self) -> Any:
        return loader(18)

    def val_dataloader(self) -> Any:
        return loader(6)

    test_dataloader = predict_dataloader = val_dataloader


def saying(hook: str, say: Callable[[Any, int], None]) -> Everything:
    """Return a module that calls ``say(module, times)`` at the start of `hook`, counting the times from 0."""
    original = getattr(Everything, hook)
    times = 0

    def speak(module: Any) -> None:
        nonlocal times
        say(module, times)
        times += 1

    def takes_all(self: Any, *args: Any, **kwargs: Any) -> Any:
        speak(self)
        return original(self, *args, **kwargs)

    def takes_batch(self: Any, batch: Any, batch_idx: int) -> Any:
        speak(self)
        return original(self, batch, batch_idx)

    method = takes_batch if hook.endswith("_step") and "r_step" not in hook else takes_all
    module: Everything = type("Saying", (Everything,), {hook: method})()
    return module


class Memory(Logger):
    """Remembers what it is given, as (step, metrics)."""

    def __init__(self) -> None:
        self.lines: list[tuple[int | None, dict[str, float]]] = []
        self.ends: list[str] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace | None, metrics: Any = None) -> None:
        pass

    def finalize(self, status: str) -> None:
        self.ends.append(status)

    def of(self, name: str) -> list[tuple[int | None, float]]:
        """The values of a metric, with their steps."""
        return [(step, line[name]) for step, line in self.lines if name in line]


def values(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics as numbers."""
    return {name: float(value) for name, value in metrics.items()}


# ---------------------------------------------------------------- defaults


@pytest.mark.parametrize("hook", TRAIN_STEP_HOOKS)
def test_what_is_logged_in_a_step_of_training_is_of_the_step(hook: str) -> None:
    """In steps and batch hooks of training only the newest value is recorded, under the plain name."""
    module = saying(hook, lambda module, times: module.log("x", float(times)))
    trainer = quiet_trainer(limit_val_batches=0, gradient_clip_val=1.0)
    trainer.fit(module)
    assert values(trainer.callback_metrics) == values(trainer.logged_metrics) == {"x": 4.0}


@pytest.mark.parametrize("hook", TRAIN_EPOCH_HOOKS)
def test_what_is_logged_in_an_epoch_hook_of_training_is_of_the_epoch(hook: str) -> None:
    """In epoch hooks and on_train_start of training the value is that of the epoch."""
    module = saying(hook, lambda module, times: module.log("x", 3.0))
    memory = Memory()
    trainer = quiet_trainer(limit_val_batches=0, logger=memory)
    trainer.fit(module)
    assert values(trainer.callback_metrics) == values(trainer.logged_metrics) == {"x": 3.0}
    assert memory.lines == [(4, {"x": 3.0, "epoch": 0})]


@pytest.mark.parametrize("stage", ["validation", "test"])
@pytest.mark.parametrize("hook", EVALUATION_STEP_HOOKS)
def test_what_is_logged_in_a_step_of_evaluation_is_the_mean(hook: str, stage: str) -> None:
    """In steps and batch hooks of evaluation the mean over samples is recorded, under the plain name."""
    module = saying(hook.format(stage), lambda module, times: module.log("x", float(times)))
    trainer = quiet_trainer()
    entry = trainer.validate if stage == "validation" else trainer.test
    assert entry(module, verbose=False) == [{"x": pytest.approx(2 / 6)}]  # 0 for four samples, 1 for two


@pytest.mark.parametrize("stage", ["validation", "test"])
@pytest.mark.parametrize("hook", EVALUATION_EPOCH_HOOKS)
def test_what_is_logged_in_an_epoch_hook_of_evaluation_is_returned(hook: str, stage: str) -> None:
    """Start and epoch hooks of evaluation may log values of the epoch."""
    module = saying(hook.format(stage), lambda module, times: module.log("x", 7.0))
    trainer = quiet_trainer()
    entry = trainer.validate if stage == "validation" else trainer.test
    assert entry(module, verbose=False) == [{"x": 7.0}]


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_epoch_start", "on_train_epoch_end"])
def test_there_is_no_step_in_an_epoch_hook(hook: str) -> None:
    """on_step=True in an epoch hook is refused, naming the hook."""
    module = saying(hook, lambda module, times: module.log("x", 1.0, on_step=True))
    with pytest.raises(MisconfigurationError, match=f"on_step=True\\) in {hook}"):
        quiet_trainer(limit_val_batches=0).fit(module)


@pytest.mark.parametrize("hook", FORBIDDEN_IN_FIT)
def test_hooks_outside_of_steps_and_epochs_must_not_log(hook: str) -> None:
    """Logging where no step and no epoch runs is refused, saying where it happened."""
    module = saying(hook, lambda module, times: module.log("x", 1.0))
    where = "a batch transfer hook" if "transfer" in hook else hook
    with pytest.raises(MisconfigurationError, match=rf"self\.log\('x', \.\.\.\) is not allowed in {where}"):
        quiet_trainer().fit(module)


@pytest.mark.parametrize("hook", FORBIDDEN_IN_PREDICT)
def test_nothing_is_logged_in_prediction(hook: str) -> None:
    """Logging during prediction is refused."""
    module = saying(hook, lambda module, times: module.log("x", 1.0))
    with pytest.raises(MisconfigurationError, match="is not allowed in"):
        quiet_trainer().predict(module)


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_sanity_check_end"])
def test_sanity_hooks_must_not_log(hook: str) -> None:
    """Logging at the ends of the sanity check is refused, for callbacks too."""

    def log(self: Any, trainer: Any, pl_module: Any) -> None:
        pl_module.log("x", 1.0)

    callback = type("Logs", (pl.Callback,), {hook: log})()
    with pytest.raises(MisconfigurationError, match=f"not allowed in {hook}"):
        quiet_trainer(callback, num_sanity_val_steps=1).fit(Everything())


def test_a_callback_logs_through_the_module() -> None:
    """A callback's hooks follow the same rules as the module's."""

    class Logs(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            pl_module.log("from_callback", batch_idx)

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log_dict({"one": 1.0, "two": 2.0}, prog_bar=True)

    trainer = quiet_trainer(Logs())
    trainer.fit(Everything())
    assert values(trainer.callback_metrics) == {"from_callback": 4.0, "one": 1.0, "two": 2.0}
    assert trainer.progress_bar_metrics == {"one": 1.0, "two": 2.0}


# ---------------------------------------------------------------- names and reductions


def test_a_metric_of_step_and_epoch_has_two_names_and_a_plain_one() -> None:
    """on_step and on_epoch together give name_step and name_epoch; callbacks also see the plain name."""
    module = saying(
        "training_step",
        lambda module, times: module.log("x", float(times), on_step=True, on_epoch=True, prog_bar=True),
    )
    memory, seen = Memory(), []

    class Looks(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            seen.append(values(trainer.callback_metrics))

    trainer = quiet_trainer(Looks(), limit_val_batches=0, log_every_n_steps=5, logger=memory)
    trainer.fit(module)

    mean = (4 * (0 + 1 + 2 + 3) + 2 * 4) / 18
    assert seen == [{"x": float(index), "x_step": float(index)} for index in range(5)]
    assert values(trainer.callback_metrics) == pytest.approx({"x": mean, "x_step": 4.0, "x_epoch": mean})
    assert values(trainer.logged_metrics) == pytest.approx({"x_step": 4.0, "x_epoch": mean})
    assert trainer.progress_bar_metrics == pytest.approx({"x_step": 4.0, "x_epoch": mean})
    assert memory.lines == [(4, {"x_step": 4.0, "epoch": 0}), (4, {"x_epoch": mean, "epoch": 0})]


@pytest.mark.parametrize(
    ("reduce_fx", "expected"),
    [
        ("mean", (4 * (0 + 1 + 2 + 3) + 2 * 4) / 18),
        (torch.mean, (4 * (0 + 1 + 2 + 3) + 2 * 4) / 18),
        ("sum", 10.0),
        (sum, 10.0),
        (torch.sum, 10.0),
        ("min", 0.0),
        (min, 0.0),
        (torch.min, 0.0),
        ("max", 4.0),
        (max, 4.0),
        (torch.max, 4.0),
    ],
)
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_an_epochs_values_are_reduced_as_asked(reduce_fx: Any, expected: float, kind: Any) -> None:
    """Means are weighted by samples, the smaller last batch included; sum, min and max are over batches."""
    module = saying(
        "training_step",
        lambda module, times: module.log(
            "x", kind(float(times)), on_step=False, on_epoch=True, reduce_fx=reduce_fx
        ),
    )
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(module)
    assert values(trainer.callback_metrics) == {"x": pytest.approx(expected)}


def test_every_epoch_begins_anew() -> None:
    """The reduction of an epoch holds nothing of the epochs before it."""
    module = saying(
        "training_step",
        lambda module, times: module.log("x", torch.tensor(times), on_epoch=True, on_step=False),
    )
    memory = Memory()
    quiet_trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=0, logger=memory).fit(module)
    assert memory.of("x") == [(1, 0.5), (3, 2.5)]


def test_a_given_batch_size_is_the_weight() -> None:
    """batch_size replaces the size that is found in the batch, and may differ from call to call."""
    module = saying(
        "training_step",
        lambda module, times: module.log("x", float(times), on_epoch=True, batch_size=1 + 9 * (times == 4)),
    )
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(module)
    assert values(trainer.callback_metrics)["x_epoch"] == pytest.approx((0 + 1 + 2 + 3 + 4 * 10) / 14)


@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("weight", [int, torch.tensor])
def test_what_weighs_nothing_does_not_count(kind: Any, weight: Any) -> None:
    """A batch size of 0 leaves the value out of the mean, NaN too."""

    class Masked(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            value = 2.0 if batch_idx == 0 else math.nan
            self.log(
                "a", kind(value), on_step=False, on_epoch=True, batch_size=weight(3 if batch_idx == 0 else 0)
            )
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer()
    trainer.fit(Masked(), loader(8))
    assert trainer.callback_metrics["a"] == 2.0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", "x"),
        ("batch_size", -1),
        ("batch_size", True),
        ("batch_size", torch.ones(2)),
        ("prog_bar", "yes"),
        ("logger", "no"),
        ("on_step", 3),
        ("sync_dist", None),
    ],
)
def test_arguments_of_log_that_cannot_be_are_refused(option: str, value: Any) -> None:
    """An argument of another type or range is named, with what was found."""

    class Slips(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("a", 1.0, **{"on_epoch": True, option: value})
            return super().training_step(batch, batch_idx)

    with pytest.raises(MisconfigurationError, match=rf"self\.log\('a', {option}=.*Use "):
        quiet_trainer().fit(Slips(), loader(8))


@pytest.mark.parametrize("reduce_fx", ["median", None, len])
def test_an_unknown_reduction_is_refused(reduce_fx: Any) -> None:
    """Another reduce_fx than mean, sum, min and max is refused, naming those."""
    module = saying("training_step", lambda module, times: module.log("x", 1.0, reduce_fx=reduce_fx))
    with pytest.raises(MisconfigurationError, match=r"self\.log\('x', reduce_fx=.* mean, sum, min, max"):
        quiet_trainer().fit(module)


@pytest.mark.parametrize("reduce_fx", ["min", "max", "mean", "sum"])
def test_nan_is_not_lost(reduce_fx: str) -> None:
    """An epoch with a NaN among its values has NaN as its value, whatever the reduction."""
    for kind in (float, torch.tensor):

        def say(module: Any, times: int, kind: Any = kind) -> None:
            module.log("x", kind(math.nan if times == 2 else 1.0), on_epoch=True, reduce_fx=reduce_fx)

        trainer = quiet_trainer(limit_val_batches=0)
        trainer.fit(saying("training_step", say))
        assert math.isnan(trainer.callback_metrics["x_epoch"])


def test_one_name_one_way() -> None:
    """The same name with other arguments in the same hook is refused, saying which argument changed."""
    module = saying("training_step", lambda module, times: module.log("x", 1.0, prog_bar=times > 0))
    with pytest.raises(MisconfigurationError, match="prog_bar=False and then True"):
        quiet_trainer().fit(module)


def test_different_hooks_may_share_a_name() -> None:
    """Training and validation may log the same name, in different ways."""

    class Shares(Everything):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 1.0, prog_bar=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 2.0)

    memory = Memory()
    trainer = quiet_trainer(logger=memory, log_every_n_steps=1)
    trainer.fit(Shares())
    assert memory.of("loss") == [*[(step, 1.0) for step in range(5)], (4, 2.0)]
    assert values(trainer.callback_metrics) == {"loss": 2.0}


def test_several_loaders_have_a_suffix_each() -> None:
    """With several evaluation loaders each has its own values, under the name with its number."""

    class Two(Everything):
        def val_dataloader(self) -> Any:
            return [loader(6), loader(4)]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("x", float(10 * dataloader_idx + batch_idx), on_step=True, on_epoch=True)
            self.log(f"own_{dataloader_idx}", 1.0, add_dataloader_idx=False)

    trainer = quiet_trainer()
    first, second = trainer.validate(Two(), verbose=False)
    assert first["x_epoch/dataloader_idx_0"] == pytest.approx(2 / 6)
    assert second["x_epoch/dataloader_idx_1"] == 10.0
    assert [name for name in first if "own" in name] == ["own_0"]
    assert [name for name in second if "own" in name] == ["own_1"]
    assert {"x_epoch/dataloader_idx_0", "x_epoch/dataloader_idx_1"} <= trainer.callback_metrics.keys()


def test_several_loaders_cannot_share_a_plain_name() -> None:
    """add_dataloader_idx=False with one name for several loaders is refused."""

    class Two(Everything):
        def val_dataloader(self) -> Any:
            return [loader(4), loader(4)]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("x", 1.0, add_dataloader_idx=False)

    with pytest.raises(MisconfigurationError, match="add_dataloader_idx=False"):
        quiet_trainer().validate(Two(), verbose=False)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    "value",
    [
        2,
        2.0,
        numpy.float32(2),
        numpy.int64(2),
        torch.tensor(2),
        torch.tensor(2.0, dtype=torch.bfloat16),
        torch.tensor([2.0]),
        torch.tensor([[2.0]], requires_grad=True),
    ],
)
@pytest.mark.parametrize("reduce_fx", ["mean", "max"])
def test_numbers_and_tensors_of_one_element_are_recorded(value: Any, reduce_fx: str) -> None:
    """Python's, NumPy's and torch's numbers are recorded as floating-point scalars without history."""
    module = saying(
        "training_step", lambda module, times: module.log("x", value, on_epoch=True, reduce_fx=reduce_fx)
    )
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(module)
    for name in ("x", "x_step", "x_epoch"):
        found = trainer.callback_metrics[name]
        assert (found.item(), found.shape, found.dtype) == (2.0, (), torch.float32)
        assert not found.requires_grad


@pytest.mark.parametrize("value", [True, torch.tensor(True)])
def test_truth_is_a_number(value: Any) -> None:
    """Booleans are recorded as 0 and 1, so their mean is a share."""
    module = saying("training_step", lambda module, times: module.log("x", value, on_epoch=True))
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(module)
    assert values(trainer.callback_metrics) == {"x": 1.0, "x_step": 1.0, "x_epoch": 1.0}


def test_double_precision_is_kept() -> None:
    """A float64 tensor is recorded with all its digits."""
    module = saying(
        "training_step",
        lambda module, times: module.log("x", torch.tensor(1 / 3, dtype=torch.float64), on_epoch=True),
    )
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(module)
    assert trainer.callback_metrics["x_step"].dtype is torch.float64
    assert trainer.callback_metrics["x_step"].item() == 1 / 3


@pytest.mark.parametrize(
    "value",
    ["0.5", b"1", None, [1.0], {"a": 1.0}, 1j, torch.zeros(2), torch.zeros(0), torch.tensor(1j)],
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    """Anything but one real number is refused, naming the metric."""
    module = saying("training_step", lambda module, times: module.log("x", value))
    with pytest.raises(MisconfigurationError, match=r"self\.log\('x'.* Log (a|one) number"):
        quiet_trainer().fit(module)


@pytest.mark.parametrize("name", [3, None, ["a"]])
def test_a_name_is_a_string(name: Any) -> None:
    """A name that is no string is refused."""
    module = saying("training_step", lambda module, times: module.log(name, 1.0))
    with pytest.raises(MisconfigurationError, match="the name must be a string"):
        quiet_trainer().fit(module)


def test_a_number_that_loses_digits_is_mentioned() -> None:
    """A whole number beyond what a float holds exactly is recorded with a warning."""
    module = saying("training_step", lambda module, times: module.log("x", 2**53 + 1))
    with pytest.warns(UserWarning, match="loses digits"):
        quiet_trainer(limit_train_batches=1, limit_val_batches=0).fit(module)


def test_a_tensor_that_changes_later_does_not_change_the_record() -> None:
    """The value counts as it was when it was logged, even if the tensor is written to in place."""

    class Changes(Everything):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            value = torch.tensor(1.0)
            for reduce_fx in ("mean", "sum", "min", "max"):
                self.log(reduce_fx, value, on_step=True, on_epoch=True, reduce_fx=reduce_fx)
            value.fill_(99.0)
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(Changes())
    found = values(trainer.callback_metrics)
    assert {name: value for name, value in found.items() if value != 1.0} == {"sum": 5.0, "sum_epoch": 5.0}


def test_reading_a_metric_gives_a_value_that_stays() -> None:
    """What callback_metrics returned earlier does not change when training goes on."""
    module = saying("training_step", lambda module, times: module.log("x", torch.tensor(float(times))))
    read: list[Tensor] = []

    class Looks(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            read.append(trainer.callback_metrics["x"])

    quiet_trainer(Looks(), limit_val_batches=0).fit(module)
    assert [value.item() for value in read] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_metrics_of_an_evaluation_can_be_changed_by_the_user() -> None:
    """Metrics are ordinary tensors even after an evaluation in inference mode."""
    trainer = quiet_trainer()
    trainer.validate(saying("validation_step", lambda module, times: module.log("x", 1.0)), verbose=False)
    metric = trainer.callback_metrics["x"]
    assert not metric.is_inference()
    assert metric.add_(1.0).item() == 2.0


# ---------------------------------------------------------------- when loggers get what


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loggers_get_the_values_of_log_points(accumulate: int) -> None:
    """Every n optimizer steps loggers get the newest value, at the number of the step, from 0."""
    module = saying("training_step", lambda module, times: module.log("x", float(times)))
    memory = Memory()
    quiet_trainer(
        max_epochs=2,
        limit_train_batches=4,
        limit_val_batches=0,
        log_every_n_steps=3 // accumulate,
        accumulate_grad_batches=accumulate,
        logger=memory,
    ).fit(module)
    steps = [2, 5] if accumulate == 1 else [0, 1, 2, 3]
    assert memory.of("x") == [(step, float((step + 1) * accumulate - 1)) for step in steps]
    assert [epoch for _, epoch in memory.of("epoch")] == [(step + 1) * accumulate > 4 for step in steps]


def test_epoch_values_do_not_wait_for_a_log_point() -> None:
    """At the end of an epoch its values are sent, at the last step's number, whatever the log points are."""
    module = saying("validation_step", lambda module, times: module.log("x", float(times)))
    memory = Memory()
    quiet_trainer(log_every_n_steps=1000, logger=memory, max_epochs=2).fit(module)
    assert memory.lines == [
        (4, {"x": pytest.approx(2 / 6), "epoch": 0}),
        (9, {"x": pytest.approx((4 * 2 + 2 * 3) / 6), "epoch": 1}),
    ]


def test_a_metric_called_step_is_the_axis() -> None:
    """A value logged under "step" replaces the number of the step for the metrics it is logged with."""
    module = saying("training_step", lambda module, times: module.log_dict({"x": 1.0, "step": times * 100.0}))
    memory = Memory()
    quiet_trainer(log_every_n_steps=5, limit_val_batches=0, logger=memory).fit(module)
    assert memory.lines == [(400, {"x": 1.0, "epoch": 0})]


def test_every_batch_of_an_evaluation_is_a_log_point() -> None:
    """What evaluation logs with on_step goes to the loggers batch by batch, numbered through the call."""
    module = saying(
        "validation_step", lambda module, times: module.log("x", float(times), on_step=True, prog_bar=True)
    )
    memory = Memory()
    trainer = quiet_trainer(logger=memory, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(module)
    assert memory.of("x_step") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert [step for step, _ in memory.of("x_epoch")] == [4, 9]
    assert values(trainer.callback_metrics).keys() == {"x", "x_epoch"}
    assert trainer.progress_bar_metrics.keys() == {"x_step", "x_epoch"}


def test_logger_false_keeps_a_metric_from_loggers() -> None:
    """logger=False hides a metric from loggers only; prog_bar decides about the display alone."""

    def say(module: Any, times: int) -> None:
        module.log("hidden", 1.0, logger=False, on_epoch=True)
        module.log("shown", 2.0, prog_bar=True)

    memory = Memory()
    trainer = quiet_trainer(logger=memory, log_every_n_steps=1, limit_val_batches=0)
    trainer.fit(saying("training_step", say))
    assert {name for _, line in memory.lines for name in line} == {"shown", "epoch"}
    assert trainer.logged_metrics.keys() == {"shown"}
    assert trainer.callback_metrics.keys() == {"hidden", "hidden_step", "hidden_epoch", "shown"}
    assert trainer.progress_bar_metrics == {"shown": 2.0}
    assert memory.ends == ["success"]


# ---------------------------------------------------------------- views over calls


def test_metrics_survive_the_call_and_are_cleared_by_the_next() -> None:
    """After a call its metrics can be read; the next call begins without them."""
    module = saying("training_step", lambda module, times: module.log("trained", 1.0))
    trainer = quiet_trainer()
    trainer.fit(module)
    assert values(trainer.callback_metrics) == {"trained": 1.0}
    trainer.test(saying("test_step", lambda module, times: module.log("tested", 2.0)), verbose=False)
    assert values(trainer.callback_metrics) == values(trainer.logged_metrics) == {"tested": 2.0}
    trainer.predict(Everything())
    assert trainer.callback_metrics == trainer.logged_metrics == trainer.progress_bar_metrics == {}


def test_the_sanity_check_leaves_no_metrics() -> None:
    """What the sanity check logs is gone before training starts, and no logger has seen it."""
    seen: list[dict[str, float]] = []

    class Looks(pl.Callback):
        def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(values(trainer.callback_metrics))

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(values(trainer.callback_metrics))

    memory = Memory()
    module = saying("validation_step", lambda module, times: module.log("x", float(times), on_step=True))
    quiet_trainer(Looks(), num_sanity_val_steps=1, logger=memory).fit(module)
    assert seen == [{"x": 0.0, "x_epoch": 0.0}, {}]
    assert memory.of("x_epoch") == [(4, pytest.approx((4 * 1 + 2 * 2) / 6))]
    assert memory.of("x_step") == [(0, 1.0), (1, 2.0)]


def test_validate_prints_and_returns_python_floats(capsys: pytest.CaptureFixture[str]) -> None:
    """validate returns one dictionary of floats a loader, and prints them unless told not to."""
    module = saying("validation_step", lambda module, times: module.log("x", torch.tensor(0.25)))
    trainer = quiet_trainer()
    found = trainer.validate(module)
    assert found == [{"x": 0.25}]
    assert type(found[0]["x"]) is float
    printed = capsys.readouterr().out
    assert "x" in printed
    assert "0.25" in printed
    trainer.validate(module, verbose=False)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- over ranks


@st.composite
def logged_by_ranks(draw: st.DrawFn) -> list[list[tuple[str, str, bool, list[tuple[float, int]]]]]:
    """For each rank, the metrics that it logs: (name, reduction, sync, [(value, weight), ...])."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
    ways = {
        name: (draw(st.sampled_from(["mean", "sum", "min", "max"])), draw(st.booleans())) for name in names
    }
    value = st.floats(-1e6, 1e6, allow_nan=False)
    batches = st.lists(st.tuples(value, st.integers(1, 64)), min_size=1, max_size=4)
    return [
        [(name, *ways[name], draw(batches)) for name in names if draw(st.booleans())]
        for _ in range(draw(st.integers(1, 5)))
    ]


def log_epoch_value(
    slots: LogSlots, name: str, value: Any, reduce_fx: str, sync: bool, weight: int | None
) -> None:
    """Log as ``self.log(..., on_step=False, on_epoch=True)`` does."""
    slots.log(name, value, False, None, False, True, reduce_fx, sync, None, True, weight, None, False)


def records_of(logged: list[tuple[str, str, bool, list[tuple[float, int]]]], tensors: bool) -> list[Record]:
    """Log through real slots, as numbers or as float64 tensors, and return their records."""
    slots = LogSlots()
    slots.enter("training_step")
    for name, reduce_fx, sync, batches in logged:
        for value, weight in batches:
            given: Any = torch.tensor(value, dtype=torch.float64) if tensors else value
            log_epoch_value(slots, name, given, reduce_fx, sync, weight)
    return slots.epoch_records()


@given(logged_by_ranks(), st.booleans())
def test_reduction_over_ranks_is_that_over_all_values(
    ranks: list[list[tuple[str, str, bool, list[tuple[float, int]]]]], tensors: bool
) -> None:
    """Ranks may log different names, unequally often and weighted: the result is over all that was logged."""
    found = combine([records_of(logged, tensors) for logged in ranks])

    everything: dict[str, list[tuple[str, bool, list[tuple[float, int]]]]] = {}
    for logged in ranks:
        for name, reduce_fx, sync, batches in logged:
            everything.setdefault(name, []).append((reduce_fx, sync, batches))
    assert found.keys() == {(name, "training_step") for name in everything}
    for name, by_rank in everything.items():
        reduce_fx, sync, _ = by_rank[0]
        used = [batch for _, _, batches in (by_rank if sync else by_rank[:1]) for batch in batches]
        numbers = [value for value, _ in used]
        expected = {
            "mean": math.fsum(value * weight for value, weight in used) / sum(weight for _, weight in used),
            "sum": math.fsum(numbers),
            "min": min(numbers),
            "max": max(numbers),
        }[reduce_fx]
        assert found[name, "training_step"] == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(logged_by_ranks())
def test_all_ranks_compute_the_same(
    ranks: list[list[tuple[str, str, bool, list[tuple[float, int]]]]],
) -> None:
    """The reduction is a function of the records by rank alone, and a synchronised extreme has no order."""
    records = [records_of(logged, False) for logged in ranks]
    found = combine(records)
    assert combine([list(item) for item in records]) == found
    synced = [[record for record in item if record[3] and record[2] in ("min", "max")] for item in records]
    assert combine(synced) == combine(synced[::-1])


@given(st.lists(st.floats(allow_infinity=True, allow_nan=True), min_size=1), st.sampled_from(["min", "max"]))
def test_an_extreme_over_ranks_keeps_nan(numbers: list[float], reduce_fx: str) -> None:
    """A NaN on any rank makes the smallest and the largest value NaN."""
    records = [[Record("x", "hook", reduce_fx, True, number, 1.0)] for number in numbers]
    found = combine(records)["x", "hook"]
    if any(math.isnan(number) for number in numbers):
        assert math.isnan(found)
    else:
        assert found == (min if reduce_fx == "min" else max)(numbers)


@given(logged_by_ranks(), st.integers(0, 3), st.booleans())
def test_logging_goes_on_exactly_after_a_restore(
    ranks: list[list[tuple[str, str, bool, list[tuple[float, int]]]]], cut: int, tensors: bool
) -> None:
    """Saving the slots in mid-epoch and restoring them elsewhere gives the same bits at its end."""

    def log(slots: LogSlots, part: slice) -> None:
        slots.enter("training_step")
        for name, reduce_fx, sync, batches in ranks[0]:
            for value, weight in batches[part]:
                given: Any = torch.tensor(value, dtype=torch.float32) if tensors else value
                log_epoch_value(slots, name, given, reduce_fx, sync, weight)

    whole, first, second = LogSlots(), LogSlots(), LogSlots()
    log(whole, slice(None))
    log(first, slice(None, cut))
    second.restore(first.state())
    log(second, slice(cut, None))
    assert sorted(second.epoch_records()) == sorted(whole.epoch_records())


def test_a_restored_slot_knows_how_it_was_asked_for() -> None:
    """A metric that is not logged again after a restore still has its value and its choices."""
    first, second = LogSlots(), LogSlots()
    first.enter("on_train_start")
    first.log("x", 2.5, True, False, None, None, "max", False, None, True, None, None, False)
    second.restore(first.state())
    (slot,) = second.epoch_slots()
    assert (slot.name, slot.hook, slot.choices) == (
        "x",
        "on_train_start",
        Choices(prog_bar=True, logger=False, reduce="max"),
    )
    assert second.epoch_records() == first.epoch_records()


# ---------------------------------------------------------------- what is mentioned


def with_batches(batches: list[Any], log: Callable[[Any], None]) -> Tiny:
    """A module that calls `log` with itself in training steps over such batches."""

    class Logs(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            log(self)
            return None

        def train_dataloader(self) -> Any:
            return batches

    return Logs()


def test_an_ambiguous_batch_size_is_mentioned_once() -> None:
    """Tensors of different lengths in a batch are mentioned once, with the length that is taken, where a
    mean over the epoch depends on it.
    """
    batches = [(torch.zeros(2), torch.zeros(5)), (torch.zeros(6), torch.zeros(5))]

    def log(module: Any) -> None:
        module.log("x", float(module.global_step), on_epoch=True)
        module.log("y", 1.0, on_epoch=True, reduce_fx="max")

    trainer = quiet_trainer(max_epochs=2)
    with pytest.warns(UserWarning, match=r"self\.log\('x'.*2, 5 rows: the first, 2.*batch_size=") as told:
        trainer.fit(with_batches(batches, log))
    assert len(told) == 1
    assert trainer.callback_metrics["x_epoch"].item() == pytest.approx((2 * 2 + 3 * 6) / 8)
    quiet_trainer().fit(
        with_batches(batches, lambda module: module.log("x", 1.0, batch_size=2, on_epoch=True))
    )
    quiet_trainer().fit(with_batches(batches, lambda module: module.log("x", 1.0)))


def test_a_batch_without_tensors_needs_a_batch_size() -> None:
    """Where no size is found in a batch, a mean over the epoch needs batch_size; nothing else does."""
    with pytest.raises(
        MisconfigurationError, match=r"self\.log\('x'.*no tensor in the batch, a dict.*batch_size"
    ):
        quiet_trainer().fit(with_batches([{"a": 1}], lambda module: module.log("x", 1.0, on_epoch=True)))

    def log(module: Any) -> None:
        module.log("step", 1.0)
        module.log("sum", 2.0, on_epoch=True, reduce_fx="sum")
        module.log("mean", 3.0, on_epoch=True, batch_size=4)

    quiet_trainer().fit(with_batches([{"a": 1}], log))


@pytest.mark.parametrize("logged", [True, False])
def test_a_loss_that_is_not_finite_is_mentioned_once(logged: bool) -> None:
    """At a log point a NaN or an infinity among what is read, the loss included, is mentioned once with the
    step, and training goes on.
    """

    class Explodes(Everything):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if self.global_step >= 2:
                loss = loss * math.inf
            self.log("train_loss", loss if logged else torch.ones(()))
            return {"loss": loss}

    trainer = quiet_trainer(limit_val_batches=0, max_epochs=2, log_every_n_steps=3)
    name = "the loss is inf, train_loss is inf" if logged else "the loss is inf"
    with pytest.warns(UserWarning, match=rf"After 3 optimizer steps {name}\. Training goes on") as told:
        trainer.fit(Explodes())
    assert len(told) == 1
    assert trainer.global_step == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_step": False, "on_epoch": False}, "records nothing. Set one of the two to True"),
        ({"sync_dist": True, "sync_dist_group": "all"}, None),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], message: str | None) -> None:
    """Logging for neither step nor epoch is refused; without other ranks a group has no effect."""
    module = saying("training_step", lambda module, times: module.log("x", 1.0, **arguments))
    if message is None:
        quiet_trainer().fit(module)
        return
    with pytest.raises(MisconfigurationError, match=message):
        quiet_trainer().fit(module)


def test_a_name_must_not_have_a_loaders_number() -> None:
    """A name with /dataloader_idx_ in it is refused, unless numbers are not added."""
    with pytest.raises(MisconfigurationError, match="a loader's number in its name"):
        quiet_trainer().fit(saying("training_step", lambda module, _: module.log("x/dataloader_idx_0", 1.0)))
    module = saying(
        "training_step", lambda module, _: module.log("x/dataloader_idx_0", 1.0, add_dataloader_idx=False)
    )
    quiet_trainer().fit(module)


def test_a_callbacks_own_log_is_the_modules() -> None:
    """self.log and self.log_dict of a callback record what pl_module.log would in the same hook; outside of
    a call the first of them warns, also in a copy.
    """

    class Logs(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.log("mine", float(batch_idx), on_epoch=True, reduce_fx="sum")

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.log_dict({"one": 1.0, "two": 2.0}, prog_bar=True)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.copied = copy.deepcopy(self)

    logs = Logs()
    trainer = quiet_trainer(logs)
    trainer.fit(Everything())
    assert values(trainer.callback_metrics) == {
        "mine": 10.0,
        "mine_step": 4.0,
        "mine_epoch": 10.0,
        "one": 1.0,
        "two": 2.0,
    }
    assert trainer.progress_bar_metrics == {"one": 1.0, "two": 2.0}
    for callback in (logs, logs.copied):
        with pytest.warns(UserWarning, match=r"Logs\.log\(\) was called without a Trainer"):
            callback.log("x", 1.0)
        callback.log_dict({"x": 1.0})


def test_hooks_must_not_log_through_a_callback_either() -> None:
    """A callback's own log is refused where the module's is."""

    class Logs(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.log("x", 1.0)

    with pytest.raises(MisconfigurationError, match="not allowed in on_fit_start"):
        quiet_trainer(Logs()).fit(Everything())


def test_hooks_see_the_loss_as_the_step_returned_it() -> None:
    """The loss in a hook's outputs is not divided by the number of accumulated batches."""
    seen: list[tuple[float, float]] = []

    class Keeps(Everything):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.returned = super().training_step(batch, batch_idx)
            return self.returned

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append((outputs["loss"].item(), self.returned.item()))

    quiet_trainer(accumulate_grad_batches=2, limit_val_batches=0).fit(Keeps())
    assert len(seen) == 5
    assert [left for left, _ in seen] == [right for _, right in seen]


def test_log_outside_of_a_call_says_so() -> None:
    """After fit the module is on its own again: log warns and records nothing."""
    module = Tiny()
    trainer = quiet_trainer()
    trainer.fit(module, loader(4))
    with pytest.warns(UserWarning, match="without a Trainer"):
        module.log("x", 1.0)
    assert trainer.callback_metrics == {}
