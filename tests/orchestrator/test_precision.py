"""Number formats: which there are, what they do to weights, inputs and new tensors, and how often weights are
cast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.precision import Precision, check_precision
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import (
    FEATURES,
    Tiny,
    Validated,
    assert_equal_weights,
    loader,
    loss_of,
    network,
    quiet_trainer,
    sgd,
)

TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


class Notes(Validated):
    """Notes the types that its steps see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, tuple[torch.dtype, ...]] = {}
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

    def note(self, hook: str, batch: Any) -> None:
        self.seen[hook] = (batch[0].dtype, batch[1].dtype, torch.rand(1).dtype, self.net(batch[0]).dtype)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("training", batch)
        return loss_of(self.net, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("validation", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("predict", batch)
        return self.net(batch[0])


@pytest.mark.parametrize("name", TRUE)
def test_a_true_precision_is_everywhere(name: str) -> None:
    """Weights, float buffers, inputs and new tensors are of its type in all steps; afterwards weights stay so
    and torch's default does not.
    """
    module, dtype = Notes(), TRUE[name]
    trainer = quiet_trainer(precision=name)
    trainer.fit(module, loader(8), loader(4))
    outputs = trainer.predict(module, loader(4))
    assert module.seen == dict.fromkeys(("training", "validation", "predict"), (dtype,) * 4)
    assert {item.dtype for item in module.parameters()} == {module.scale.dtype} == {dtype}
    assert module.count.dtype == torch.int64
    assert outputs[0].dtype == dtype
    assert torch.get_default_dtype() == torch.float32


def test_double_precision_is_the_plain_loop_in_double() -> None:
    """64-true computes what a plain loop over a double module computes, to the bit."""
    module = Tiny()
    quiet_trainer(precision=64).fit(module, loader(12))
    plain = network().double()
    optimizer = sgd(plain.parameters())
    for inputs, targets in loader(12):
        optimizer.zero_grad()
        loss_of(plain, (inputs.double(), targets.double())).backward()
        optimizer.step()
    assert_equal_weights(module.net, plain)


def test_inputs_are_cast_within_containers_and_whole_numbers_are_not() -> None:
    """Float tensors anywhere in a batch become the precision's type; others, and other things, stay."""

    class Takes(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.kinds = [batch["x"][0].dtype, batch["y"].dtype, type(batch["name"])]
            return loss_of(self.net, (batch["x"][0], batch["x"][0].sum(1, keepdim=True)))

    module = Takes()
    batch = {"x": [torch.ones(2, FEATURES)], "y": torch.arange(2), "name": "a"}
    quiet_trainer(precision="bf16-true").fit(module, [batch])
    assert module.kinds == [torch.bfloat16, torch.int64, str]


def test_hooks_get_inputs_that_are_cast() -> None:
    """The transfer hooks see a batch after it was brought to the precision's type."""

    class Hooked(Tiny):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.seen = batch[0].dtype
            return batch

    module = Hooked()
    quiet_trainer(precision="64-true").fit(module, loader(4))
    assert module.seen == torch.float64


def test_configure_model_builds_in_the_precision() -> None:
    """Layers made in configure_model are made in the type of a true precision at once."""

    class Late(Tiny):
        def configure_model(self) -> None:
            self.made = torch.nn.Linear(2, 2).weight.dtype

    module = Late()
    quiet_trainer(precision="bf16-true").fit(module, loader(4))
    assert module.made == torch.bfloat16


def test_init_module_builds_in_the_precision_and_may_leave_weights_unfilled() -> None:
    """trainer.init_module makes weights in the run's type; with empty_init nothing draws random numbers."""
    trainer = quiet_trainer(precision="bf16-true")
    with trainer.init_module():
        filled = nn.Linear(4, 4)
    assert filled.weight.dtype == torch.bfloat16
    before = torch.get_rng_state()
    with trainer.init_module(empty_init=True):
        layer = nn.Linear(64, 64)
        nn.init.normal_(tensor=layer.weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert layer.weight.shape == (64, 64)
    assert torch.get_default_dtype() == torch.float32


def test_a_checkpoint_has_the_precisions_type(tmp_path: Path) -> None:
    """The state dict of bf16-true is bf16; loading it into another precision casts."""
    module = Tiny()
    trainer = quiet_trainer(precision="bf16-true")
    trainer.fit(module, loader(8))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert {item.dtype for item in saved["state_dict"].values()} == {torch.bfloat16}
    other = Tiny()
    quiet_trainer(max_epochs=2).fit(other, loader(8), ckpt_path=tmp_path / "a.ckpt")
    assert other.net[0].weight.dtype == torch.float32


class _Casts(TorchDispatchMode):
    """Counts the casts of a tensor of one shape to bf16."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and tuple(args[0].shape) == self.shape:
            self.count += kwargs.get("dtype") is torch.bfloat16
        return func(*args, **kwargs)


def test_a_weight_is_cast_once_a_step() -> None:
    """A layer that is used three times in a step has its weight cast once under bf16-mixed."""

    class Thrice(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, FEATURES)
            self.counts: list[int] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with _Casts((FEATURES, FEATURES)) as casts:
                value = self.layer(self.layer(self.layer(batch[0])))
            self.counts.append(casts.count)
            return value.float().mean()

        def configure_optimizers(self) -> Any:
            return sgd(self.parameters())

    module = Thrice()
    quiet_trainer(precision="bf16-mixed").fit(module, loader(12, batch_size=3))
    assert module.counts == [1] * 4


def test_half_precision_on_cpus_is_what_was_asked_for() -> None:
    """16-mixed on a CPU computes in fp16 with a scaler, not in another type."""
    precision = Precision.create("16-mixed", torch.device("cpu"))
    assert precision.scaler is not None
    assert precision.compute_dtype == torch.float16


def test_fp8_is_refused_where_it_cannot_run() -> None:
    """Without a GPU, fp8 is one error before anything starts, whichever way it is written."""
    pytest.importorskip("torchao")
    for value in (8, "8", "fp8", "fp8-mixed"):
        with pytest.raises(
            MisconfigurationError, match=r"runs on cpu, and fp8 needs NVIDIA GPUs.*bf16-mixed"
        ):
            quiet_trainer(precision=value)


def test_fp8_without_torchao_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torchao is missing, the error says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MisconfigurationError, match=r"pip install 'ray-training-orchestrator\[fp8\]'"):
        check_precision("fp8-mixed", "cuda")


@pytest.mark.ray
def test_weights_come_home_in_their_type(tmp_path: Path) -> None:
    """After bf16-true on a group the driver's module is bf16, in the same parameters, as in one process."""
    module, alone = Net(), Net()
    weight = module.net[0].weight
    trainer = group_trainer(tmp_path, max_epochs=1, precision="bf16-true")
    trainer.fit(module, group_loader(16))
    assert module.net[0].weight is weight
    assert weight.dtype == torch.bfloat16
    assert trainer.predict(module, group_loader(4))[0].dtype == torch.bfloat16
    group_trainer(tmp_path, 1, max_epochs=1, precision="bf16-true").fit(alone, group_loader(16))
    assert alone.dtype == torch.bfloat16
