"""DeepSpeed's ZeRO on a group: DDP's numbers, checkpoints for everybody, and what it cannot do named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import orchestrator as pl
from orchestrator.callbacks import EMAWeightAveraging, LearningRateFinder, ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from orchestrator.strategies import DeepSpeedStrategy
from tests.orchestrator.groups import Net, group_trainer, loader
from tests.orchestrator.tiny import assert_equal_weights

pytestmark = [pytest.mark.extras, pytest.mark.ray]
STAGES: dict[str, Any] = {
    "1": "deepspeed_stage_1",
    "2": "deepspeed_stage_2",
    # DeepSpeed leaves small weights whole unless it is told not to.
    "3": DeepSpeedStrategy(stage=3, config={"zero_optimization": {"stage3_param_persistence_threshold": 0}}),
}
UNEVEN = 36
"""Samples in batches of 4 on 2 ranks: the last batch is rank 0's alone."""


class Odd(Net):
    """Sizes that two ranks cannot halve, two groups of parameters, and a scheduler."""

    def __init__(self) -> None:
        super().__init__(8, 15)

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[0].parameters()}, {"params": self.net[2].parameters(), "lr": 0.02}]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Summed(Odd):
    """Returns its loss as a sum and a count."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels = batch
        total = nn.functional.cross_entropy(self(inputs), labels, reduction="sum")
        return {"loss_sum": total, "loss_count": len(labels)}


class Frozen(Odd):
    """A first layer that does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class FrozenGroup(Odd):
    """A group of parameters that do not train."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)


class StepsItself(Odd):
    """Calls the optimizer's step with its closure."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        optimizer.step(closure=closure)


class Manual(Net):
    """Optimises by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class WholeTensors(Net):
    """Its optimizer looks at rows and columns."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adafactor(self.parameters())


class ClipsItself(Net):
    """Clips by its own rule."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, 1.0)


class Stream(IterableDataset[Any]):
    """44 points whose number nobody knows."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        generator = torch.Generator().manual_seed(3)
        for _ in range(44):
            inputs = torch.randn(8, generator=generator)
            yield inputs, int(inputs.sum() > 0)


class Watches(pl.Callback):
    """Notes, on the worker, how weights and optimizer state lie there, and what the optimizer says it is."""

    def __init__(self) -> None:
        self.weights = self.moments = 0
        self.is_adam = False

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        (optimizer,) = trainer.optimizers
        self.weights = sum(item.numel() for item in module.parameters())
        self.moments = sum(entry["exp_avg"].numel() for entry in optimizer.state.values())
        self.is_adam = isinstance(optimizer, torch.optim.AdamW)


def fitted(root: Path, strategy: Any, module: Net | None = None, **arguments: Any) -> Net:
    """A module after training on 2 ranks whose data ends unevenly, with validation that does too."""
    module = Odd() if module is None else module
    ckpt_path = arguments.pop("ckpt_path", None)
    data = arguments.pop("data") if "data" in arguments else loader(UNEVEN, batch_size=4)
    trainer = group_trainer(root, strategy=strategy, **{"max_epochs": 1, **arguments})
    trainer.fit(module, data, loader(20, batch_size=3), ckpt_path=ckpt_path)
    module.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("make", [Odd, Summed, Frozen, StepsItself])
def test_zero_is_bit_equal_to_ddp(tmp_path: Path, make: type[Net]) -> None:
    """On 2 ranks weights and metrics are DDP's to the bit in all stages, also where ranks end unevenly."""
    expected = fitted(tmp_path, "ddp", make())
    for strategy in STAGES.values():
        found = fitted(tmp_path, strategy, make())
        assert_equal_weights(found, expected)
        assert found.metrics == expected.metrics


@pytest.mark.parametrize(
    "arguments",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.05},
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05},
    ],
    ids=str,
)
def test_zero_is_ddp_up_to_the_order_of_sums(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Accumulated, clipped and mixed, weights are DDP's but for the last digit."""
    expected = fitted(tmp_path, "ddp", **arguments).state_dict()
    plain = fitted(tmp_path, "ddp").state_dict()
    for strategy in (*STAGES.values(), "deepspeed_stage_2_offload", "deepspeed_stage_3_offload"):
        found = fitted(tmp_path, strategy, **arguments).state_dict()
        for name, weight in found.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-7)
        assert not torch.allclose(found["net.0.weight"], plain["net.0.weight"], rtol=0, atol=2e-7)


def test_a_window_that_ends_early_is_divided_by_its_own_size(tmp_path: Path) -> None:
    """Where only the data's end shows that a window is over, its gradients are rescaled as under DDP."""
    arguments: dict[str, Any] = {"accumulate_grad_batches": 3, "join_uneven": True}
    expected = fitted(tmp_path, "ddp", data=DataLoader(Stream(), batch_size=4), **arguments).state_dict()
    for strategy in STAGES.values():
        found = fitted(tmp_path, strategy, data=DataLoader(Stream(), batch_size=4), **arguments)
        for name, weight in found.state_dict().items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-7)


@pytest.mark.parametrize("stage", STAGES)
def test_each_rank_keeps_a_part_and_all_comes_home(tmp_path: Path, stage: str) -> None:
    """State is dealt, weights in stage 3; the module comes home whole, in place and without traces."""
    watches, module = Watches(), Odd()
    before = {name: (item, item.numel()) for name, item in module.named_parameters()}
    total = sum(size for _, size in before.values())
    trainer = group_trainer(tmp_path, strategy=STAGES[stage], max_epochs=1, callbacks=[watches])
    trainer.fit(module, loader(16), loader(20, batch_size=3))
    assert watches.is_adam
    assert total / 2 <= watches.moments < total / 2 + 16
    assert watches.weights == (0 if stage == "3" else total)
    for name, item in module.named_parameters():
        assert item is before[name][0]
        assert item.numel() == before[name][1]
        assert not item.__dict__
    for layer in module.modules():
        assert type(layer._parameters) is dict
        assert not layer._forward_pre_hooks
        assert not [name for name in layer.__dict__ if "ds_" in name]
    here = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    data = loader(20, batch_size=3)
    for run in ("validate", "test"):
        (there,) = getattr(trainer, run)(module, data, verbose=False)
        assert getattr(here, run)(module, data, verbose=False) == [pytest.approx(there)]
    assert torch.equal(torch.cat(trainer.predict(module, data)), torch.cat(here.predict(module, data)))


def test_checkpoints_are_everybodys(tmp_path: Path) -> None:
    """A run goes on from any strategy's checkpoint and ends as the unbroken run does, to the bit."""
    strategies = {"ddp": "ddp", **STAGES}
    states = {}
    for name, strategy in strategies.items():
        saver = ModelCheckpoint(
            dirpath=tmp_path / name, filename="{step}", save_top_k=-1, every_n_train_steps=3
        )
        end = fitted(tmp_path, strategy, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
        states[name] = torch.load(tmp_path / name / "step=3.ckpt", weights_only=True)
        expected, (theirs,) = states["ddp"]["state_dict"], states["ddp"]["optimizer_states"]
        (ours,) = states[name]["optimizer_states"]
        assert states[name]["state_dict"].keys() == expected.keys()
        assert all(torch.equal(states[name]["state_dict"][key], expected[key]) for key in expected)
        assert ours["param_groups"] == theirs["param_groups"]
        for index, entry in theirs["state"].items():
            assert entry.keys() == ours["state"][index].keys()
            assert all(torch.equal(ours["state"][index][key], entry[key]) for key in entry)
        if name == "ddp":
            unbroken = end
        assert_equal_weights(end, unbroken)
    for start, other in [(name, name) for name in STAGES] + [("ddp", "1"), ("ddp", "3"), ("2", "3")]:
        path = tmp_path / start / "step=3.ckpt"
        assert_equal_weights(fitted(tmp_path, strategies[other], max_epochs=2, ckpt_path=path), unbroken)
    for start in STAGES:
        path = tmp_path / start / "step=3.ckpt"
        assert_equal_weights(fitted(tmp_path, "ddp", max_epochs=2, ckpt_path=path), unbroken)
    trainer = group_trainer(tmp_path, strategy=STAGES["3"])
    trainer.validate(Odd(), loader(20, batch_size=3), ckpt_path=path, verbose=False)
    assert float(trainer.callback_metrics["val_loss"]) > 0


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Manual, {}, "Manual.automatic_optimization is False.*automatic optimization"),
        (WholeTensors, {}, "Adafactor, whose step needs whole parameters.*AdamW"),
        (FrozenGroup, {}, "group 0 has no parameter that needs gradients.*Leave the group out"),
        (ClipsItself, {}, "ClipsItself.configure_gradient_clipping.*gradient_clip_val"),
        (Net, {"callbacks": [EMAWeightAveraging()]}, "EMAWeightAveraging.*changes weights"),
        (Net, {"callbacks": [LearningRateFinder()]}, "LearningRateFinder.*copy of the module"),
    ],
    ids=["manual", "whole", "frozen", "clipping", "averaging", "finder"],
)
def test_what_cannot_be_dealt_is_refused(
    tmp_path: Path, make: type[Net], arguments: dict[str, Any], message: str
) -> None:
    """What ZeRO cannot do is one error that names it and what to write."""
    with pytest.raises(MisconfigurationError, match=message):
        fitted(tmp_path, "deepspeed", make(), **arguments)


def test_unfreezing_is_refused(tmp_path: Path) -> None:
    """Parameters that begin to need gradients between epochs are one error, not silently left out."""

    class Thaws(Frozen):
        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch > 0)

    with pytest.raises(MisconfigurationError, match="began or ceased to need gradients"):
        fitted(tmp_path, "deepspeed", Thaws(), max_epochs=2)
