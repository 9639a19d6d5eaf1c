"""ModelPruning: how much is zero after which epochs, what is left of the masks, and that ranks agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from orchestrator.callbacks import ModelCheckpoint, ModelPruning
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, Validated, loader, network, quiet_trainer


def zeros(module: nn.Module) -> int:
    """How many parameters are zero; the network has 49."""
    return sum(int((item == 0).sum()) for item in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "epochs", "expected"),
    [
        ({"pruning_fn": "l1_unstructured", "amount": 10}, 1, 10),
        ({"pruning_fn": "l1_unstructured", "amount": 10}, 2, 20),
        ({"pruning_fn": "random_unstructured", "amount": 0.5}, 1, 24),
        ({"pruning_fn": prune.L1Unstructured, "amount": 0.5, "parameter_names": ["weight"]}, 1, 20),
        ({"pruning_fn": prune.l1_unstructured, "use_global_unstructured": False, "amount": 1}, 1, 4),
        (
            {
                "pruning_fn": "ln_structured",
                "use_global_unstructured": False,
                "pruning_dim": 0,
                "pruning_norm": 1,
                "amount": 0.25,
            },
            1,
            8,
        ),
        ({"pruning_fn": "l1_unstructured", "amount": lambda epoch: 5 * epoch}, 3, 15),
        ({"pruning_fn": "l1_unstructured", "amount": 5, "apply_pruning": lambda epoch: epoch == 1}, 3, 5),
    ],
)
def test_weights_become_zero(arguments: dict[str, Any], epochs: int, expected: int) -> None:
    """After each epoch the amount of what was left is zero, and the module ends without masks."""
    module = Tiny()
    quiet_trainer(ModelPruning(**arguments), max_epochs=epochs).fit(module, loader(8))
    assert zeros(module) == expected
    assert module.state_dict().keys() == Tiny().state_dict().keys()


def test_pruned_weights_stay_zero_and_others_train() -> None:
    """In the epochs after pruning, zeros stay where they are while the rest goes on."""
    module = Tiny()
    callback = ModelPruning("l1_unstructured", amount=20, apply_pruning=lambda epoch: epoch == 0)
    quiet_trainer(callback, max_epochs=1).fit(module, loader(8))
    first = module.net[0].weight.clone()
    module = Tiny()
    quiet_trainer(callback, max_epochs=3).fit(module, loader(8))
    later = module.net[0].weight
    assert torch.equal(later == 0, first == 0)
    assert not torch.equal(later, first)


@pytest.mark.parametrize("lottery", [True, False])
def test_what_is_left_goes_back_to_its_first_values(lottery: bool) -> None:
    """With the lottery ticket hypothesis the weights that are left are the initial ones."""
    module, first = Tiny(), network()
    pruning = ModelPruning("l1_unstructured", amount=10, use_lottery_ticket_hypothesis=lottery)
    quiet_trainer(pruning).fit(module, loader(8))
    kept = module.net[0].weight != 0
    assert torch.equal(module.net[0].weight[kept], first[0].weight[kept]) is lottery


def test_checkpoints_hold_plain_weights(tmp_path: Path) -> None:
    """A checkpoint that is written between prunings has the module's own names, with the zeros."""
    keep = ModelCheckpoint(tmp_path, save_top_k=-1)
    trainer = quiet_trainer(
        ModelPruning("l1_unstructured", amount=10), keep, max_epochs=2, enable_checkpointing=True
    )
    trainer.fit(Tiny(), loader(8))
    counts = []
    for path in sorted(tmp_path.iterdir()):
        module = Tiny()
        module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        counts.append(zeros(module))
    assert counts == [10, 20]


def test_masks_are_left_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    """Without making it permanent the module keeps originals and masks; verbose says what was pruned."""
    module = Validated()
    callback = ModelPruning(
        "l1_unstructured",
        amount=7,
        make_pruning_permanent=False,
        prune_on_train_epoch_end=False,
        verbose=2,
        parameters_to_prune=[(module.net[0], "weight")],
    )
    quiet_trainer(callback, num_sanity_val_steps=1).fit(module, loader(8), loader(4))
    assert int((module.net[0].weight_mask == 0).sum()) == 7
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Pruned l1_unstructured: 0/32 -> 7/32 (21.88%)"
    assert lines[1].endswith("weight, amount 7: 0 -> 7 (21.88%)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelPruning("l1_unstructure"), "Did you mean 'l1_unstructured'"),
        (lambda: ModelPruning(5), "pruning_fn=5"),  # type: ignore[arg-type]
        (lambda: ModelPruning("ln_structured"), "use_global_unstructured=False"),
        (lambda: ModelPruning("ln_structured", use_global_unstructured=False), "pruning_dim=None"),
        (
            lambda: ModelPruning("ln_structured", use_global_unstructured=False, pruning_dim=0),
            "pruning_norm=None",
        ),
        (lambda: ModelPruning("l1_unstructured", amount=1.5), r"amount=1.5\) is no amount"),
        (lambda: ModelPruning("l1_unstructured", verbose=3), r"verbose=3"),
        (lambda: ModelPruning("l1_unstructured", parameter_names=["weights"]), "Did you mean 'weight'"),
        (
            lambda: quiet_trainer(
                ModelPruning("l1_unstructured", parameters_to_prune=[(nn.Linear(1, 1), "weight")])
            ).fit(Tiny(), loader(4)),
            "no parameter of Tiny",
        ),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], message: str) -> None:
    """Arguments that cannot work are an error that names them."""
    with pytest.raises(MisconfigurationError, match=message):
        make()


class Sums(Net):
    """Logs, from each rank, which weights are zero."""

    def on_train_epoch_start(self) -> None:
        weight: Any = self.net[0].weight
        places = (weight == 0).flatten().nonzero().double().sum()
        self.log("most", places, sync_dist=True, reduce_fx="max")
        self.log("least", places, sync_dist=True, reduce_fx="min")


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_ranks_prune_the_same(tmp_path: Path) -> None:
    """Random pruning takes the same weights on two ranks, and the driver's module has the zeros."""
    trainer = group_trainer(tmp_path, callbacks=[ModelPruning("random_unstructured", amount=40)])
    module = Sums()
    trainer.fit(module, group_loader(32))
    assert zeros(module) == 80
    assert trainer.callback_metrics["most"] == trainer.callback_metrics["least"] > 0
    with pytest.raises(MisconfigurationError, match="Use True on a group"):
        group_trainer(
            tmp_path, callbacks=[ModelPruning("l1_unstructured", make_pruning_permanent=False)]
        ).fit(Sums(), group_loader(32))
