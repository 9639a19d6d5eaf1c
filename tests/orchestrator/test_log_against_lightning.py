"""self.log beside Lightning's own, run on the same module: the same names, values and refusals."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as ours
from orchestrator import log_hooks
from orchestrator.errors import MisconfigurationError

pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

Views = dict[str, Any]
Speak = Callable[[Any, int], None]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep Lightning's own reports out of the output."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def data() -> DataLoader[Any]:
    """Ten numbers in batches of 4, 4 and 2."""
    return DataLoader(TensorDataset(torch.arange(10.0).view(10, 1)), batch_size=4)


def collected_metrics() -> tuple[Any, Any]:
    """A metric, and a collection of two."""
    import torchmetrics as tm

    return tm.MeanMetric(), tm.MetricCollection({"a": tm.MeanMetric(), "b": tm.SumMetric()}, prefix="p_")


def watcher_of(pl: Any, seen: list[dict[str, float]]) -> Any:
    """A callback of `pl` that notes what callbacks see at batch and epoch ends."""

    def note(self: Any, trainer: Any, *args: Any) -> None:
        seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    hooks = ("on_train_batch_end", "on_train_epoch_end", "on_validation_end", "on_test_end")
    return type("Watches", (pl.Callback,), dict.fromkeys(hooks, note))()


def module_of(pl: Any, speaks: dict[str, Speak], loaders: int = 1) -> Any:
    """A module of `pl` that calls ``speaks[hook](module, times)`` in each of these hooks, counting from 0."""

    class Speaks(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.metric, self.scores = collected_metrics()
            self.layer = nn.Linear(1, 1)
            with torch.no_grad():
                self.layer.weight.fill_(0.5)
                self.layer.bias.fill_(0.1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch[0]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return None

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return None

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    def wrapped(hook: str, speak: Speak) -> Any:
        original, times = getattr(Speaks, hook), iter(range(10**6))

        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            speak(self, next(times))
            return original(self, batch, batch_idx)

        def evaluation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            speak(self, next(times))

        def any_hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            speak(self, next(times))
            return original(self, *args, **kwargs)

        steps = {"validation_step": evaluation_step, "test_step": evaluation_step}
        return {"training_step": training_step, **steps}.get(hook, any_hook)

    methods = {hook: wrapped(hook, speak) for hook, speak in speaks.items()}
    return type("Module", (Speaks,), methods)()


def run(pl: Any, fn: str, speaks: dict[str, Speak], loaders: int = 1) -> Views:
    """What the trainer of `pl` shows after a call, and showed callbacks in it."""
    seen: list[dict[str, float]] = []
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=[watcher_of(pl, seen)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **({} if pl is ours else {"enable_model_summary": False}),
    )
    module = module_of(pl, speaks)
    found = [data() for _ in range(loaders)] if loaders > 1 else data()
    if fn == "fit":
        trainer.fit(module, data(), found)
        returned = []
    else:
        returned = getattr(trainer, fn)(module, found, verbose=False)
    after = {
        name: {key: float(value) for key, value in getattr(trainer, name).items()}
        for name in ("callback_metrics", "logged_metrics", "progress_bar_metrics")
    }
    return {**after, "seen": seen, "returned": returned}


def assert_alike(fn: str, speaks: dict[str, Speak], loaders: int = 1) -> None:
    """Both trainers show the same."""
    import lightning.pytorch as theirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = run(theirs, fn, speaks, loaders)
    found = run(ours, fn, speaks, loaders)
    assert expected["callback_metrics"] or expected["logged_metrics"]
    assert len(found["seen"]) == len(expected["seen"])
    for ours_then, theirs_then in zip(found.pop("seen"), expected.pop("seen"), strict=True):
        assert ours_then == pytest.approx(theirs_then)
    for found_of_loader, expected_of_loader in zip(
        found.pop("returned"), expected.pop("returned"), strict=True
    ):
        assert found_of_loader == pytest.approx(expected_of_loader)
    for view, metrics in expected.items():
        assert found[view] == pytest.approx(metrics), view


def saying(**arguments: Any) -> Speak:
    """Log the square of the number of the call, so that no reduction looks like another."""
    return lambda module, times: module.log("x", float(times * times), **arguments)


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"prog_bar": True},
    {"logger": False, "prog_bar": True},
    {"on_step": True, "on_epoch": True, "prog_bar": True},
    {"on_step": False, "on_epoch": True},
    {"on_step": True, "on_epoch": False},
    {"on_epoch": True, "reduce_fx": "sum"},
    {"on_epoch": True, "reduce_fx": torch.max},
    {"on_epoch": True, "reduce_fx": min},
    {"on_epoch": True, "reduce_fx": "AVG"},
    {"on_epoch": True, "batch_size": 3},
    {"on_epoch": True, "sync_dist": True},
    {"on_epoch": True, "rank_zero_only": True},
    {"on_epoch": True, "enable_graph": True},
    {"add_dataloader_idx": False},
]


def name_of(arguments: dict[str, Any]) -> str:
    """A short name for a case."""
    return (
        ",".join(f"{key}={getattr(value, '__name__', value)}" for key, value in arguments.items()) or "none"
    )


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=name_of)
@pytest.mark.parametrize(
    ("fn", "hook"), [("fit", "training_step"), ("fit", "validation_step"), ("test", "test_step")]
)
def test_a_step_shows_what_lightning_shows(fn: str, hook: str, arguments: dict[str, Any]) -> None:
    """In steps every argument gives Lightning's names and values in all three views."""
    assert_alike(fn, {hook: saying(**arguments)})


HOOKS = [
    ("fit", "on_train_start"),
    ("fit", "on_train_epoch_start"),
    ("fit", "on_train_batch_start"),
    ("fit", "on_before_zero_grad"),
    ("fit", "on_before_backward"),
    ("fit", "on_after_backward"),
    ("fit", "on_before_optimizer_step"),
    ("fit", "on_train_batch_end"),
    ("fit", "on_train_epoch_end"),
    ("fit", "on_validation_batch_end"),
    ("fit", "on_validation_epoch_end"),
    ("validate", "on_validation_start"),
    ("validate", "on_validation_epoch_start"),
    ("validate", "on_validation_batch_start"),
    ("test", "on_test_batch_end"),
    ("test", "on_test_epoch_end"),
]


@pytest.mark.parametrize("arguments", [{}, {"prog_bar": True, "on_epoch": True}], ids=name_of)
@pytest.mark.parametrize(("fn", "hook"), HOOKS)
def test_a_hook_shows_what_lightning_shows(fn: str, hook: str, arguments: dict[str, Any]) -> None:
    """In every hook that may log, defaults and epoch values are Lightning's."""
    assert_alike(fn, {hook: saying(**arguments)})


@pytest.mark.parametrize(
    "arguments", [{}, {"on_step": True}, {"on_step": True, "on_epoch": False}], ids=name_of
)
def test_several_loaders_show_what_lightning_shows(arguments: dict[str, Any]) -> None:
    """With several loaders the names are Lightning's, the loader's number included."""
    assert_alike("validate", {"validation_step": saying(**arguments)}, loaders=2)


def test_one_name_in_several_hooks_shows_what_lightning_shows() -> None:
    """Training and validation may share a name; the newest value counts."""
    assert_alike(
        "fit",
        {
            "training_step": saying(on_epoch=True),
            "validation_step": lambda module, times: module.log("x", times + 0.5),
            "on_train_epoch_end": lambda module, times: module.log("y", 7.0),
        },
    )


def count_and_log(**arguments: Any) -> Speak:
    """Update a metric and a collection with the number of the call, and log both."""

    def speak(module: Any, times: int) -> None:
        module.metric(float(times * times))
        module.log("m", module.metric, **arguments)
        module.scores(float(times))
        module.log_dict(module.scores, **arguments)

    return speak


@pytest.mark.parametrize(
    "arguments",
    [{}, {"on_step": True, "on_epoch": True, "prog_bar": True}, {"on_step": False, "on_epoch": True}],
    ids=name_of,
)
@pytest.mark.parametrize(
    ("fn", "hook"),
    [
        ("fit", "training_step"),
        ("fit", "validation_step"),
        ("test", "test_step"),
        ("fit", "on_train_epoch_end"),
    ],
)
def test_metric_objects_show_what_lightning_shows(fn: str, hook: str, arguments: dict[str, Any]) -> None:
    """A metric and a collection have Lightning's names and values on steps and epochs, epoch after epoch."""
    if hook == "on_train_epoch_end" and arguments:
        arguments = {"prog_bar": True}
    assert_alike(fn, {hook: count_and_log(**arguments)})


REFUSED: list[tuple[str, str, Speak]] = [
    ("training_step", "container", lambda module, times: module.log("x", [1.0])),
    ("training_step", "dictionary", lambda module, times: module.log("x", {"a": 1.0})),
    ("training_step", "string", lambda module, times: module.log("x", "1.0")),
    ("training_step", "shape", lambda module, times: module.log("x", torch.zeros(2))),
    ("training_step", "reduction", saying(reduce_fx="median")),
    ("training_step", "no reduction", saying(reduce_fx=None)),
    ("training_step", "nothing", saying(on_step=False, on_epoch=False)),
    ("training_step", "loader", lambda module, times: module.log("x/dataloader_idx_0", 1.0)),
    ("training_step", "changed", lambda module, times: module.log("x", 1.0, prog_bar=times > 0)),
    ("on_train_epoch_end", "step", saying(on_step=True)),
    ("on_train_epoch_end", "no epoch", saying(on_epoch=False)),
]


@pytest.mark.parametrize(("hook", "case", "speak"), REFUSED, ids=[case for _, case, _ in REFUSED])
def test_what_lightning_refuses_is_refused(hook: str, case: str, speak: Speak) -> None:
    """Calls that Lightning refuses are refused here too, as a MisconfigurationError that names the metric."""
    import lightning.pytorch as theirs

    with warnings.catch_warnings(), pytest.raises(Exception, match=r"log"):
        warnings.simplefilter("ignore")
        run(theirs, "fit", {hook: speak})
    with pytest.raises(MisconfigurationError, match=r"self\.log\('x"):
        run(ours, "fit", {hook: speak})


def test_the_table_of_hooks_is_lightnings() -> None:
    """Where logging is allowed, and what is recorded there by default, agrees with Lightning's table."""
    from lightning.pytorch.trainer.connectors.logger_connector.fx_validator import _FxValidator

    for hook, rules in _FxValidator.functions.items():
        assert (hook in log_hooks.ALLOWED) == (rules is not None), hook
        if rules is not None:
            assert log_hooks.records_step(hook, None) == rules["default_on_step"], hook
            assert log_hooks.records_epoch(hook, None) == rules["default_on_epoch"], hook
            assert (hook in log_hooks.EPOCH_ONLY) == (True not in rules["allowed_on_step"]), hook
    assert _FxValidator.functions.keys() >= log_hooks.ALLOWED
