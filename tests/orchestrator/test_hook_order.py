"""The order in which hooks run: Lightning's, and written out for those who do not have it at hand.

Every hook of a module, a callback and a data module writes its name. What each test expects is a list; with
Lightning installed the same classes run under it, and the lists must be equal but for the differences that
are named here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import orchestrator
from orchestrator.callbacks import EarlyStopping, ModelCheckpoint
from tests.orchestrator.tiny import Tiny, loader, loss_of, network, quiet_trainer

_STAGES = ("train", "validation", "test", "predict")
_SHARED = [
    "setup",
    "teardown",
    "on_fit_start",
    "on_fit_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_save_checkpoint",
    "on_load_checkpoint",
] + [
    f"on_{stage}_{when}"
    for stage in _STAGES
    for when in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")
]
_TRANSFER = ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
_LOADERS = [f"{kind}_dataloader" for kind in ("train", "val", "test", "predict")]
_OF_MODULE = [
    *_SHARED,
    *_TRANSFER,
    *_LOADERS,
    *[
        "configure_callbacks",
        "configure_model",
        "configure_optimizers",
        "prepare_data",
        "backward",
        "optimizer_step",
    ],
    *[
        "optimizer_zero_grad",
        "lr_scheduler_step",
        "configure_gradient_clipping",
        "on_validation_model_zero_grad",
    ],
    *[f"on_{stage}_model_{mode}" for stage in _STAGES[1:] for mode in ("eval", "train")],
]
_OF_CALLBACK = [
    *_SHARED,
    *["on_sanity_check_start", "on_sanity_check_end", "on_exception", "state_dict", "load_state_dict"],
]
_OF_DATAMODULE = [
    *_TRANSFER,
    *_LOADERS,
    *["prepare_data", "setup", "teardown", "on_exception", "state_dict", "load_state_dict"],
]

# Hooks that differ from Lightning in a case, and why.
_DIFFERENCES: dict[str, set[str]] = {
    # We call it when prediction has ended, as after validation and testing; Lightning never does.
    "predict": {"M.on_predict_model_train"},
    # We ask for all data before training, so that what is wrong with it shows at once.
    "fit with validation twice an epoch, every other epoch": {"D.val_dataloader"},
    # We tear down after a failure too.
    "a failing training step": {"D.teardown", "C.teardown", "M.teardown"},
    "a failing validation step": {"D.teardown", "C.teardown", "M.teardown"},
}


def recording(base: type, names: list[str], letter: str, record: list[str]) -> Any:
    """Return an instance of a subclass of `base` whose methods `names` write themselves down and go on."""

    def method(name: str) -> Callable[..., Any]:
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            record.append(f"{letter}.{name}")
            original = getattr(super(kind, self), name, None)
            return None if original is None else original(*args, **kwargs)

        return run

    kind = type("Recording", (base,), {name: method(name) for name in names})
    return kind()


def cast_for(
    framework: Any, record: list[str], fails_in: str = "", by_hand: bool = False
) -> tuple[Any, Any, Any]:
    """Return (module, callback, data module) of `framework`, all of whose hooks write to `record`."""

    class Module(framework.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.automatic_optimization = not by_hand

        def _step(self, name: str, batch: Any) -> Any:
            record.append(f"M.{name}")
            if name == fails_in:
                raise ArithmeticError(f"planned, in {name}")
            return loss_of(self.net, batch)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self._step("training_step", batch)
            if by_hand:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("watched", self._step("validation_step", batch))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("tested", self._step("test_step", batch))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self._step("predict_step", batch)

        def configure_callbacks(self) -> Any:
            return []

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            rate = torch.optim.lr_scheduler
            return [optimizer], [
                {"scheduler": rate.StepLR(optimizer, 1), "interval": "step"},
                rate.StepLR(optimizer, 1),
            ]

    class Callback(framework.Callback):  # type: ignore[misc]
        def state_dict(self) -> dict[str, Any]:
            return {"kept": 1}

    class Data(framework.LightningDataModule):  # type: ignore[misc]
        def state_dict(self) -> dict[str, Any]:
            return {"kept": 2}

        def _loader(self) -> DataLoader[Any]:
            return loader(12)  # three batches

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

        train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader

    return (
        recording(Module, _OF_MODULE, "M", record),
        recording(Callback, _OF_CALLBACK, "C", record),
        recording(Data, _OF_DATAMODULE, "D", record),
    )


def trainer_of(framework: Any, callback: Any, **arguments: Any) -> Any:
    """Return a quiet trainer of one epoch."""
    defaults = {
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    if framework is not orchestrator:
        defaults["enable_model_summary"] = False
    return framework.Trainer(accelerator="cpu", devices=1, callbacks=[callback], **{**defaults, **arguments})


def run(framework: Any, entry: str, fails_in: str = "", by_hand: bool = False, **arguments: Any) -> list[str]:
    """Return what was written down in one call of `entry` under `framework`."""
    record: list[str] = []
    module, callback, data = cast_for(framework, record, fails_in, by_hand)
    trainer = trainer_of(framework, callback, **arguments)
    try:
        getattr(trainer, entry)(module, datamodule=data)
    except ArithmeticError:
        record.append("raised")
    return record


def both(*names: str) -> list[str]:
    """A hook that callback and module share, in that order."""
    return [f"{letter}.{name}" for name in names for letter in "CM"]


def transfer() -> list[str]:
    """The data module's transfer hooks, which win over the module's."""
    return [f"D.{name}" for name in _TRANSFER]


def begin(stage: str) -> list[str]:
    """All that comes before the loaders."""
    return [
        "M.configure_callbacks",
        "D.prepare_data",
        "M.prepare_data",
        "D.setup",
        *both("setup"),
        "M.configure_model",
        *(["M.configure_optimizers", *both("on_fit_start")] if stage == "fit" else []),
    ]


def end(stage: str) -> list[str]:
    """All that comes after the loops."""
    return [*(both("on_fit_end") if stage == "fit" else []), "D.teardown", *both("teardown")]


def evaluation(name: str, batches: int, step: str = "") -> list[str]:
    """An evaluation loop."""
    return [
        f"M.on_{name}_model_eval",
        *both(f"on_{name}_start", f"on_{name}_epoch_start"),
        *[
            item
            for _ in range(batches)
            for item in (
                *transfer(),
                *both(f"on_{name}_batch_start"),
                f"M.{step or name}_step",
                *both(f"on_{name}_batch_end"),
            )
        ],
        *both(f"on_{name}_epoch_end", f"on_{name}_end"),
        f"M.on_{name}_model_train",
    ]


def train_batch(*, first: bool = True, last: bool = True, ends_epoch: bool = False) -> list[str]:
    """A training batch that is the `first` or the `last` of its accumulation window."""
    zero = [*both("on_before_zero_grad"), "M.optimizer_zero_grad"] if first else []
    backward = [*both("on_before_backward"), "M.backward", *both("on_after_backward")]
    step = [*both("on_before_optimizer_step"), "M.configure_gradient_clipping"] if last else []
    schedulers = (["M.lr_scheduler_step"] if last else []) + (["M.lr_scheduler_step"] if ends_epoch else [])
    return [
        *transfer(),
        *both("on_train_batch_start"),
        *(["M.optimizer_step"] if last else []),
        "M.training_step",
        *zero,
        *backward,
        *step,
        *schedulers,
        *both("on_train_batch_end"),
    ]


VALIDATION = ["M.on_validation_model_zero_grad", *evaluation("validation", 1)]
IN_WINDOW = evaluation("validation", 1)  # gradients are kept, so nothing is zeroed


def epoch(*parts: list[str]) -> list[str]:
    """A training epoch around its batches."""
    return [
        *both("on_train_epoch_start"),
        *[item for part in parts for item in part],
        *both("on_train_epoch_end"),
    ]


def training(*parts: list[str]) -> list[str]:
    """fit, with `parts` between on_train_start and on_train_end."""
    return [
        *begin("fit"),
        "D.train_dataloader",
        "D.val_dataloader",
        *both("on_train_start"),
        *[item for part in parts for item in part],
        *both("on_train_end"),
        *end("fit"),
    ]


BY_HAND = [
    *transfer(),
    *both("on_train_batch_start"),
    "M.training_step",
    *both("on_before_backward"),
    "M.backward",
    *both("on_after_backward", "on_before_optimizer_step", "on_train_batch_end"),
]
SAVING = ["C.state_dict", "D.state_dict", "C.on_save_checkpoint", "M.on_save_checkpoint"]

CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "fit": (
        "fit",
        {"limit_train_batches": 2, "limit_val_batches": 1},
        training(epoch(train_batch(), train_batch(ends_epoch=True), VALIDATION)),
    ),
    "fit without validation": (
        "fit",
        {"limit_val_batches": 0, "max_epochs": 2, "limit_train_batches": 1},
        [
            item
            for item in training(epoch(train_batch(ends_epoch=True)), epoch(train_batch(ends_epoch=True)))
            if item != "D.val_dataloader"
        ],
    ),
    "fit with a sanity check": (
        "fit",
        {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 1},
        [
            *begin("fit"),
            "C.on_sanity_check_start",
            "D.val_dataloader",
            *evaluation("validation", 1),
            "C.on_sanity_check_end",
            "D.train_dataloader",
            *both("on_train_start"),
            *epoch(train_batch(ends_epoch=True), VALIDATION),
            *both("on_train_end"),
            *end("fit"),
        ],
    ),
    "fit with accumulation and validation after each batch": (
        "fit",
        {"accumulate_grad_batches": 2, "val_check_interval": 1, "limit_val_batches": 1},
        training(
            epoch(
                train_batch(last=False),
                IN_WINDOW,
                train_batch(first=False),
                VALIDATION,
                train_batch(ends_epoch=True),
                VALIDATION,
            )
        ),
    ),
    "fit with validation twice an epoch, every other epoch": (
        "fit",
        {
            "max_epochs": 2,
            "limit_train_batches": 2,
            "limit_val_batches": 1,
            "val_check_interval": 0.5,
            "check_val_every_n_epoch": 2,
        },
        training(
            epoch(train_batch(), train_batch(ends_epoch=True)),
            epoch(train_batch(), VALIDATION, train_batch(ends_epoch=True), VALIDATION),
        ),
    ),
    "fit by hand": (
        "fit",
        {"limit_train_batches": 2, "limit_val_batches": 1, "by_hand": True},
        training(epoch(BY_HAND, BY_HAND, VALIDATION)),
    ),
    "fit two epochs with a sanity check, validation and checkpoints": (
        "fit",
        {
            "max_epochs": 2,
            "limit_train_batches": 2,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 1,
            "enable_checkpointing": True,
        },
        [
            *begin("fit"),
            "C.on_sanity_check_start",
            "D.val_dataloader",
            *evaluation("validation", 1),
            "C.on_sanity_check_end",
            "D.train_dataloader",
            *both("on_train_start"),
            *[*epoch(train_batch(), train_batch(ends_epoch=True), VALIDATION), *SAVING] * 2,
            *both("on_train_end"),
            *end("fit"),
        ],
    ),
    "fit without epochs": (
        "fit",
        {"max_epochs": 0, "limit_val_batches": 0},
        [*begin("fit"), "D.train_dataloader", *end("fit")],
    ),
    "fit without training batches": (
        "fit",
        {"limit_train_batches": 0, "limit_val_batches": 0},
        [*begin("fit"), *end("fit")],
    ),
    "validate": (
        "validate",
        {"limit_val_batches": 2},
        [*begin("validate"), "D.val_dataloader", *evaluation("validation", 2), *end("validate")],
    ),
    "validate without batches": (
        "validate",
        {"limit_val_batches": 0},
        [*begin("validate"), *end("validate")],
    ),
    "test": (
        "test",
        {"limit_test_batches": 2},
        [*begin("test"), "D.test_dataloader", *evaluation("test", 2), *end("test")],
    ),
    "predict": (
        "predict",
        {"limit_predict_batches": 1},
        [*begin("predict"), "D.predict_dataloader", *evaluation("predict", 1), *end("predict")],
    ),
    "a failing training step": (
        "fit",
        {"limit_val_batches": 0, "fails_in": "training_step"},
        [
            *begin("fit"),
            "D.train_dataloader",
            *both("on_train_start", "on_train_epoch_start"),
            *transfer(),
            *both("on_train_batch_start"),
            "M.optimizer_step",
            "M.training_step",
            "C.on_exception",
            "D.on_exception",
            *end(""),
            "raised",
        ],
    ),
    "a failing validation step": (
        "validate",
        {"fails_in": "validation_step"},
        [
            *begin("validate"),
            "D.val_dataloader",
            "M.on_validation_model_eval",
            *both("on_validation_start", "on_validation_epoch_start"),
            *transfer(),
            *both("on_validation_batch_start"),
            "M.validation_step",
            "C.on_exception",
            "D.on_exception",
            *end(""),
            "raised",
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hooks_run_in_the_documented_order(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry point calls every hook exactly as often and in the order that is written down here."""
    monkeypatch.chdir(tmp_path)
    entry, arguments, expected = CASES[case]
    assert run(orchestrator, entry, **arguments) == expected


@pytest.mark.extras
@pytest.mark.parametrize("case", CASES)
def test_hooks_run_in_lightnings_order(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Lightning the same classes write down the same list, but for the differences that are named."""
    monkeypatch.chdir(tmp_path)
    lightning = pytest.importorskip("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    entry, arguments, expected = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = run(lightning, entry, **arguments)
    differing = _DIFFERENCES.get(case, set())
    assert [item for item in theirs if item not in differing] == [
        item for item in expected if item not in differing
    ]


def save_and_resume(framework: Any, path: Path, weights_only: bool) -> tuple[list[str], list[str]]:
    """Return what was written down while saving after a fit, and while resuming, up to on_train_start."""
    record: list[str] = []
    module, callback, data = cast_for(framework, record)
    trainer = trainer_of(framework, callback, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    record.clear()
    trainer.save_checkpoint(path, weights_only)
    saving, resuming = list(record), []
    if not weights_only:
        record.clear()
        module, callback, data = cast_for(framework, record)
        trainer = trainer_of(framework, callback, max_epochs=2, limit_val_batches=0)
        trainer.fit(module, datamodule=data, ckpt_path=path)
        resuming = record[: record.index("C.on_train_start")]
    return saving, resuming


LOADING = ["M.on_load_checkpoint", "D.load_state_dict", "C.on_load_checkpoint", "C.load_state_dict"]
RESUMING = [
    *begin("validate"),
    *LOADING,
    "M.configure_optimizers",
    *both("on_fit_start"),
    "D.train_dataloader",
]


def test_checkpoint_hooks_run_in_the_documented_order(tmp_path: Path) -> None:
    """A save asks callbacks, data module and module in turn; a resume gives back in Lightning's order."""
    assert save_and_resume(orchestrator, tmp_path / "a.ckpt", weights_only=False) == (SAVING, RESUMING)
    assert save_and_resume(orchestrator, tmp_path / "b.ckpt", weights_only=True)[0] == SAVING[-1:]


@pytest.mark.extras
def test_checkpoint_hooks_run_in_lightnings_order(tmp_path: Path) -> None:
    """Under Lightning saving and resuming write down the same lists."""
    lightning = pytest.importorskip("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert save_and_resume(lightning, tmp_path / "a.ckpt", weights_only=False) == (SAVING, RESUMING)


def test_callbacks_that_watch_metrics_end_the_epoch_after_the_module() -> None:
    """EarlyStopping and ModelCheckpoint see what the module logs in on_train_epoch_end; others come first."""
    order: list[str] = []

    class Watches(EarlyStopping):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            order.append("watching callback")
            super().on_train_epoch_end(trainer, pl_module)

    class Saves(ModelCheckpoint):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            order.append("saving callback")

    class Other(orchestrator.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            order.append("other callback")

    class Logs(Tiny):
        def on_train_epoch_end(self) -> None:
            order.append("module")
            self.log("late", 1.0)

    trainer = quiet_trainer(Saves(), Watches("late"), Other(), enable_checkpointing=True)
    trainer.fit(Logs(), loader(4))

    assert order == ["other callback", "module", "watching callback", "saving callback"]
    assert [type(item) for item in trainer.callbacks] == [Watches, Other, Saves]
