"""BaseFinetuning and BackboneFinetuning: what is frozen, when it thaws, and that ranks then train it too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator as pl
from orchestrator.callbacks import BackboneFinetuning, BaseFinetuning, LambdaCallback
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import Tiny, loader, loss_of, network, quiet_trainer


class Tuned(pl.LightningModule):
    """A backbone, with or without batch normalization, and a head."""

    def __init__(self, normed: bool = False, everything: bool = False) -> None:
        super().__init__()
        net = network()
        self.backbone = nn.Sequential(net[0], *([nn.BatchNorm1d(8)] if normed else []))
        self.head = nn.Sequential(*net[1:])
        self.everything = everything

    def forward(self, inputs: Any) -> Any:
        return self.head(self.backbone(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return loss_of(self, batch)

    def configure_optimizers(self) -> Any:
        chosen = [item for item in self.parameters() if self.everything or item.requires_grad]
        return torch.optim.SGD(chosen, lr=0.1)


def followed(callback: BaseFinetuning, module: Tuned, epochs: int = 4) -> list[Any]:
    """Each epoch's groups, as (rate, number of parameters)."""
    seen: list[Any] = []

    def note(trainer: pl.Trainer, pl_module: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        seen.append([(round(group["lr"], 6), len(group["params"])) for group in groups])

    trainer = quiet_trainer(callback, LambdaCallback(on_train_epoch_end=note), max_epochs=epochs)
    trainer.fit(module, loader(8))
    return seen


@pytest.mark.parametrize(
    ("arguments", "rates"),
    [
        ({"unfreeze_backbone_at_epoch": 2}, [None, None, 0.01, 0.02]),
        ({"unfreeze_backbone_at_epoch": 1, "backbone_initial_lr": 0.03}, [None, 0.03, 0.06, 0.1]),
        (
            {"unfreeze_backbone_at_epoch": 0, "lambda_func": lambda epoch: epoch, "should_align": False},
            [0.01, 0.02, 0.06, 0.24],
        ),
    ],
)
def test_the_backbone_thaws_and_speeds_up(arguments: dict[str, Any], rates: list[float | None]) -> None:
    """It is frozen before its epoch, then a group with a rate that grows, up to the head's if aligned."""
    found = followed(BackboneFinetuning(**arguments), Tuned())
    assert found == [[(0.1, 2)] if rate is None else [(0.1, 2), (rate, 2)] for rate in rates]


def test_the_frozen_do_not_move() -> None:
    """Frozen weights keep their values to the bit until they thaw."""
    module, before = Tuned(), Tuned().backbone[0].weight
    quiet_trainer(BackboneFinetuning(1)).fit(module, loader(8))
    assert torch.equal(module.backbone[0].weight, before)
    quiet_trainer(BackboneFinetuning(1), max_epochs=2).fit(module, loader(8))
    assert not torch.equal(module.backbone[0].weight, before)


@pytest.mark.parametrize(("train_bn", "sizes"), [(True, [4, 2]), (False, [2, 2])])
def test_batch_norm_is_trained_on_request(train_bn: bool, sizes: list[int]) -> None:
    """With train_bn it is trained from the beginning; without, it stays out of the optimizer."""
    found = followed(BackboneFinetuning(1, train_bn=train_bn), Tuned(normed=True), epochs=2)
    assert [size for _, size in found[-1]] == sizes


def test_parameters_that_are_there_already_are_named() -> None:
    """An optimizer that was built from all parameters gets no group, with a warning that says why."""
    with pytest.warns(UserWarning, match="2 of 2 parameters that thaw are in the optimizer already"):
        found = followed(BackboneFinetuning(1), Tuned(everything=True), epochs=2)
    assert [len(groups) for groups in found] == [1, 1]


def test_a_second_fit_goes_on_with_what_has_thawed() -> None:
    """Another call of the same trainer does not freeze again."""
    module = Tuned()
    trainer = quiet_trainer(BackboneFinetuning(1), max_epochs=2)
    trainer.fit(module, loader(8))
    before = module.backbone[0].weight.clone()
    trainer.settings = quiet_trainer(max_epochs=3).settings
    trainer.fit(module, loader(8))
    assert [len(group["params"]) for group in trainer.optimizers[0].param_groups] == [2, 2]
    assert not torch.equal(module.backbone[0].weight, before)


def test_the_tools_of_a_subclass() -> None:
    """Modules are flattened, frozen, filtered and thawed as their names say."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2)))
    flat = BaseFinetuning.flatten_modules([net, nn.Linear(1, 1)])
    assert [type(item) for item in flat] == [nn.Linear, nn.BatchNorm1d, nn.Linear, nn.Linear]
    BaseFinetuning.freeze(net, train_bn=True)
    assert [item.requires_grad for item in net.parameters()] == [False, False, True, True, False, False]
    BaseFinetuning.freeze(net, train_bn=False)
    assert not any(item.requires_grad for item in net.parameters()) and not net[1].track_running_stats
    assert len(list(BaseFinetuning.filter_params(net, train_bn=False, requires_grad=False))) == 4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    BaseFinetuning.unfreeze_and_add_param_group(net, optimizer)
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.1, 1), (0.01, 6)]
    assert net[1].track_running_stats


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BackboneFinetuning(-1), "unfreeze_backbone_at_epoch=-1"),
        (lambda: BackboneFinetuning(lambda_func=2), "lambda_func=2"),
        (lambda: BackboneFinetuning(backbone_initial_lr=0), "backbone_initial_lr=0"),
        (lambda: quiet_trainer(BackboneFinetuning()).fit(Tiny(), loader(4)), "Tiny.backbone"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], message: str) -> None:
    """Arguments that cannot work, and a module without a backbone, are errors that name them."""
    with pytest.raises(MisconfigurationError, match=message):
        make()


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_ranks_reduce_what_has_thawed(tmp_path: Path) -> None:
    """After thawing, two ranks train the backbone as one process does with batches of twice the size."""
    alone, shared = Tuned(), Tuned()
    quiet_trainer(BackboneFinetuning(1), max_epochs=3).fit(alone, loader(16, batch_size=8))
    callback = BackboneFinetuning(1)
    group_trainer(tmp_path, callbacks=[callback], max_epochs=3).fit(shared, loader(16, batch_size=4))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    assert not torch.equal(shared.backbone[0].weight, Tuned().backbone[0].weight)
    assert callback.previous_backbone_lr == pytest.approx(0.02)
