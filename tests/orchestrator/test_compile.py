"""Compiled steps: the same numbers, whole graphs in spite of logging, nothing compiled twice or left behind.

The compiler's ``eager`` backend captures graphs and runs them as they are, so no C++ compiler is needed and
results are equal to the bit.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.compile import is_compiled, unwrap
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, Validated, assert_equal_weights, loader, loss_of, quiet_trainer

WHOLE = {"backend": "eager", "fullgraph": True}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """Graphs that were compiled in this test."""
    return int(counters["stats"]["unique_graphs"])


class Logs(Validated):
    """Logs in every way that a step can."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = loss_of(self.net, batch)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        self.log_dict({"double": loss * 2, "three": 3.0}, on_epoch=True, batch_size=4)
        return {"loss": loss, "index": batch_idx}


def test_logging_breaks_no_graph() -> None:
    """A step that logs is one graph, with the weights and metrics of the plain run to the bit."""
    plain, compiled = Logs(), Logs()
    usual, trainer = quiet_trainer(max_epochs=2), quiet_trainer(max_epochs=2, compile=WHOLE)
    usual.fit(plain, loader(16), loader(8))
    trainer.fit(compiled, loader(16), loader(8))
    assert_equal_weights(compiled, plain)
    assert trainer.callback_metrics == usual.callback_metrics
    assert {"loss_step", "loss_epoch", "double", "three", "val_loss"} <= trainer.callback_metrics.keys()
    assert dict(counters["graph_break"]) == {}
    assert graphs() == 2  # training and validation


def test_a_second_fit_compiles_nothing() -> None:
    """The compiled steps of a module are kept for the next call, also of another Trainer."""
    module = Logs()
    quiet_trainer(compile=WHOLE).fit(module, loader(16), loader(8))
    first = graphs()
    quiet_trainer(compile=WHOLE).fit(module, loader(16), loader(8))
    assert graphs() == first == 2


def test_every_entry_point_is_compiled() -> None:
    """validate, test and predict compile their own step, and return what they return without."""
    module = Validated()
    trainer, usual = quiet_trainer(compile=WHOLE), quiet_trainer()
    for number, entry in enumerate(("validate", "test"), start=1):
        found = getattr(trainer, entry)(module, loader(8), verbose=False)
        assert found == getattr(usual, entry)(module, loader(8), verbose=False)
        assert graphs() == number
    found = trainer.predict(module, loader(8))
    assert torch.equal(torch.cat(found), torch.cat(usual.predict(module, loader(8))))
    assert graphs() == 3


def test_a_compiled_module_is_accepted() -> None:
    """What torch.compile returns may be fitted: its module is trained with steps compiled in the same way."""
    plain, module = Logs(), Logs()
    compiled = torch.compile(module, **WHOLE)
    quiet_trainer().fit(plain, loader(16))
    trainer = quiet_trainer()
    trainer.fit(compiled, loader(16))  # type: ignore[arg-type]
    assert graphs() == 1
    assert trainer.lightning_module is module
    assert_equal_weights(module, plain)
    assert trainer.validate(compiled, loader(8), verbose=False) == trainer.validate(  # type: ignore[arg-type]
        module, loader(8), verbose=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"backend": "eager"},
        {"backend": "aot_eager", "dynamic": True, "fullgraph": True},
        {"backend": "eager", "dynamic": False},
    ],
    ids=str,
)
def test_the_arguments_of_compile_are_found_again(arguments: dict[str, Any]) -> None:
    """They are read from the compiled module, so that they can go to workers, as plain values."""
    module = Tiny()
    compiled = torch.compile(module, **arguments)
    assert is_compiled(compiled)
    assert not is_compiled(module)
    found, read = unwrap(compiled)
    assert found is module
    assert read == arguments
    assert pickle.loads(pickle.dumps(read)) == arguments


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it imports its backend
def test_a_mode_becomes_its_options() -> None:
    """For torch's own backend a mode is kept as the options that it stands for."""
    _, read = unwrap(torch.compile(Tiny(), mode="max-autotune-no-cudagraphs"))
    assert read["options"]["max_autotune"] is True


def test_nothing_of_it_is_left_in_the_module(tmp_path: Path) -> None:
    """Names in checkpoints have no prefix; afterwards the steps are the module's own, and it pickles."""
    module = Logs()
    saver = ModelCheckpoint(dirpath=tmp_path, filename="a")
    quiet_trainer(saver, compile=WHOLE, enable_checkpointing=True).fit(module, loader(8))
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == Logs().state_dict().keys()
    assert "training_step" not in module.__dict__
    assert "_compiled_steps" not in pickle.loads(pickle.dumps(module)).__dict__
    loaded = Logs()
    loaded.load_state_dict(saved["state_dict"])
    assert_equal_weights(loaded, module)


def test_a_failing_step_logs_nothing_and_leaves_nothing() -> None:
    """An exception in a compiled step passes through, and the module is as before."""

    class Fails(Logs):
        fails = True

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("before", 1.0)
            if self.fails:
                raise KeyError("user")
            return loss_of(self.net, batch)

    module = Fails()
    trainer = quiet_trainer(compile={"backend": "eager"})
    with pytest.raises(KeyError, match="user"):
        trainer.fit(module, loader(4))
    assert "training_step" not in module.__dict__
    module.fails = False
    trainer.fit(module, loader(4))
    assert trainer.callback_metrics["before"] == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("inductor", "Use True, False, or a dictionary"),
        ({"modes": 1}, "no argument 'modes'. Did you mean 'mode'"),
    ],
)
def test_arguments_are_checked(value: Any, message: str) -> None:
    """What torch.compile does not take is refused when the Trainer is made."""
    with pytest.raises(MisconfigurationError, match=message):
        quiet_trainer(compile=value)


class CountsGraphs(pl.Callback):
    """Brings home what the compiler did on rank 0."""

    def __init__(self) -> None:
        self.stats: dict[str, int] = {}
        self.breaks: dict[str, int] = {}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        counters.clear()

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        self.stats, self.breaks = dict(counters["stats"]), dict(counters["graph_break"])


@pytest.mark.ray
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_steps_are_compiled_on_a_group(tmp_path: Path, strategy: str) -> None:
    """Workers compile the step within the strategy and end with the plain run's weights to the bit."""

    class Own(Net):  # of this test alone, so that no worker has compiled it before
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss(batch)
            self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
            return loss * 1.0

    plain, module, counts = Own(), Own(), CountsGraphs()
    group_trainer(tmp_path, max_epochs=1, strategy=strategy).fit(plain, group_loader(32), group_loader(16))
    compiled = torch.compile(module, backend="eager")
    trainer = group_trainer(tmp_path, max_epochs=1, strategy=strategy, callbacks=[counts])
    trainer.fit(compiled, group_loader(32), group_loader(16))  # type: ignore[arg-type]
    assert_equal_weights(module, plain)
    assert counts.stats["unique_graphs"] >= 1
    assert counts.breaks == {}
    assert "training_step" not in module.__dict__
