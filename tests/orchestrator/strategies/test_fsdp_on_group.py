"""Fully sharded training on a group: DDP's numbers, checkpoints for everybody, weights that come home."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orchestrator as pl
from orchestrator.callbacks import (
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from orchestrator.errors import MisconfigurationError
from orchestrator.strategies import FSDPStrategy
from tests.orchestrator.groups import Net, group_trainer, loader
from tests.orchestrator.tiny import assert_equal_weights

pytestmark = pytest.mark.ray

UNEVEN = 36
"""Samples in batches of 4 on 2 ranks: the last batch is rank 0's alone."""


class Tied(Net):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        generator = torch.Generator().manual_seed(2)
        self.first = nn.Linear(8, 8, bias=False)
        self.first.weight = self.net[0].weight
        with torch.no_grad():
            self.first.weight.copy_(torch.randn(8, 8, generator=generator) * 0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(self.first(inputs))  # type: ignore[no-any-return]


class ShardsItself(Net):
    """Calls fully_shard itself, where there is a group."""

    def configure_model(self) -> None:
        import torch.distributed as dist
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if dist.is_initialized() and not isinstance(self.net[0], FSDPModule):
            fully_shard(self.net[0])


class Watches(pl.Callback):
    """Notes, on the worker, how weights and optimizer state lie there."""

    def __init__(self) -> None:
        self.local: list[int] = []
        self.kinds: set[str] = set()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weight = module.net[0].weight
        moment = trainer.optimizers[0].state[weight]["exp_avg"]
        self.kinds |= {type(weight).__name__, type(moment).__name__}
        self.local = [weight.to_local().numel(), moment.to_local().numel()]


def fitted(root: Path, strategy: Any, module: Net | None = None, **arguments: Any) -> Net:
    """A module after training on 2 ranks whose data ends unevenly, with validation that does too."""
    module = Net() if module is None else module
    ckpt_path = arguments.pop("ckpt_path", None)
    trainer = group_trainer(root, strategy=strategy, **{"max_epochs": 1, **arguments})
    trainer.fit(module, loader(UNEVEN, batch_size=4), loader(20, batch_size=3), ckpt_path=ckpt_path)
    module.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}  # type: ignore[assignment]
    return module


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "16-mixed"},
    ],
    ids=str,
)
def test_fsdp_is_bit_equal_to_ddp(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """On 2 ranks weights and metrics are DDP's to the bit, in their type, also where ranks end unevenly."""
    expected = fitted(tmp_path / "ddp", "ddp", **arguments)
    found = fitted(tmp_path / "fsdp", FSDPStrategy(auto_wrap=nn.Linear), **arguments)
    assert_equal_weights(found, expected)
    assert found.metrics == expected.metrics
    assert found.dtype == expected.dtype


def test_clipping_uses_the_norm_of_all_parts(tmp_path: Path) -> None:
    """The norm over dealt gradients is that of whole ones, up to the order of its sum."""
    expected = fitted(tmp_path / "ddp", "ddp", gradient_clip_val=0.05)
    found = fitted(tmp_path / "fsdp", "fsdp", gradient_clip_val=0.05)
    unclipped = fitted(tmp_path / "free", "fsdp")
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], rtol=0, atol=1e-6)
    assert not torch.allclose(found.net[0].weight, unclipped.net[0].weight, rtol=0, atol=1e-6)


def test_each_rank_keeps_a_part(tmp_path: Path) -> None:
    """Weights and optimizer state are dealt to the ranks, and come home whole, in the user's own classes."""
    watches = Watches()
    module = Net()
    before = module.net[0].weight
    trainer = group_trainer(tmp_path, strategy="fsdp", max_epochs=1, callbacks=[watches])
    trainer.fit(module, loader(16))
    assert watches.kinds == {"DTensor"}
    assert watches.local == [before.numel() // 2] * 2
    assert module.net[0].weight is before
    assert type(module.net[0]) is nn.Linear
    assert module.net[0]._forward_pre_hooks == {}
    assert "__composable_api_state_key" not in module.net.__dict__
    here = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    there = trainer.validate(module, loader(20, batch_size=3), verbose=False)
    assert here.validate(module, loader(20, batch_size=3), verbose=False) == [pytest.approx(there[0])]
    whole = torch.cat(here.predict(module, loader(20, batch_size=3)))
    assert torch.equal(torch.cat(trainer.predict(module, loader(20, batch_size=3))), whole)


def test_checkpoints_are_everybodys(tmp_path: Path) -> None:
    """A run goes on from the other strategy's checkpoint and ends as the unbroken run does, to the bit."""
    ends = {}
    for name in ("ddp", "fsdp"):
        saver = ModelCheckpoint(
            dirpath=tmp_path / name, filename="{step}", save_top_k=-1, every_n_train_steps=3
        )
        ends[name] = fitted(tmp_path, name, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
    assert_equal_weights(ends["ddp"], ends["fsdp"])
    ours, theirs = (
        torch.load(tmp_path / name / "step=3.ckpt", weights_only=True) for name in ("fsdp", "ddp")
    )
    assert ours["optimizer_states"][0]["state"].keys() == theirs["optimizer_states"][0]["state"].keys()
    for index, entry in ours["optimizer_states"][0]["state"].items():
        for key, value in theirs["optimizer_states"][0]["state"][index].items():
            assert torch.equal(entry[key], value)
    for name, other in (("ddp", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp")):
        resumed = fitted(tmp_path, other, max_epochs=2, ckpt_path=tmp_path / name / "step=3.ckpt")
        assert_equal_weights(resumed, ends["ddp"])
    loaded = Net.load_from_checkpoint(tmp_path / "fsdp" / "step=9.ckpt")
    assert torch.equal(loaded.net[0].weight, ours["state_dict"]["net.0.weight"]) is False


def test_a_module_may_shard_itself(tmp_path: Path) -> None:
    """What configure_model has sharded stays as it is, and the rest is dealt around it."""
    assert_equal_weights(fitted(tmp_path, "fsdp", ShardsItself()), fitted(tmp_path, "ddp"))


def test_one_weight_of_two_layers_stays_one(tmp_path: Path) -> None:
    """Ties within a unit train as under DDP; between units they are refused by name."""
    found, expected = fitted(tmp_path, "fsdp", Tied()), fitted(tmp_path, "ddp", Tied())
    assert_equal_weights(found, expected)
    assert found.first.weight is found.net[0].weight
    with pytest.raises(
        MisconfigurationError, match=re.escape("net.0.weight and first.weight are one weight")
    ):
        fitted(tmp_path, FSDPStrategy(auto_wrap=nn.Linear), Tied())


def test_evaluation_needs_no_batch_on_each_rank(tmp_path: Path) -> None:
    """A rank without a single batch runs along with another's, and nothing of that is counted or returned."""
    module = Net()
    trainer = group_trainer(tmp_path, strategy="fsdp")
    usual = group_trainer(tmp_path)
    single = loader(3, batch_size=3)
    assert trainer.validate(module, single, verbose=False) == usual.validate(module, single, verbose=False)
    found = trainer.predict(module, single)
    assert len(found) == 1
    assert torch.equal(found[0], usual.predict(module, single)[0])


def test_frozen_weights_stay(tmp_path: Path) -> None:
    """Weights that need no gradient are dealt too, and come home as they were."""

    class Frozen(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net[0].requires_grad_(False)

    module, start = Frozen(), Frozen()
    assert_equal_weights(fitted(tmp_path, "fsdp", module), fitted(tmp_path, "ddp", Frozen()))
    assert torch.equal(module.net[0].weight, start.net[0].weight)
    assert [item.requires_grad for item in module.parameters()] == [False, False, True, True]


def test_a_checkpoint_within_a_window_is_refused(tmp_path: Path) -> None:
    """Gradients that are not reduced yet cannot be saved, and the error says when to save."""

    class SavesEarly(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            trainer.save_checkpoint(tmp_path / "early.ckpt")

    with pytest.raises(
        RuntimeError, match=r"within a window of 2 accumulated batches.*after an optimizer step"
    ):
        fitted(tmp_path, "fsdp", accumulate_grad_batches=2, callbacks=[SavesEarly()])


class StepsItself(Net):
    """Optimises by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(self.loss(batch))


@pytest.mark.parametrize(
    ("module", "callback", "named"),
    [
        (StepsItself(), None, "StepsItself.automatic_optimization=False"),
        pytest.param(Net(), EMAWeightAveraging(), "EMAWeightAveraging", marks=pytest.mark.slow),
        pytest.param(
            Net(), StochasticWeightAveraging(0.1), "StochasticWeightAveraging", marks=pytest.mark.slow
        ),
        pytest.param(Net(), ModelPruning("l1_unstructured"), "ModelPruning", marks=pytest.mark.slow),
        (Net(), LearningRateFinder(update_attr=False, num_training_steps=2), "learning-rate range test"),
    ],
)
def test_what_needs_whole_weights_is_refused(
    tmp_path: Path, module: pl.LightningModule, callback: pl.Callback | None, named: str
) -> None:
    """What steps, copies or compares whole weights ends in one line that says what to use instead."""
    trainer = group_trainer(tmp_path, strategy="fsdp", callbacks=[] if callback is None else [callback])
    with pytest.raises(MisconfigurationError, match=rf"{named} and Trainer\(strategy='fsdp'\): .*ddp"):
        trainer.fit(module, loader(16))
