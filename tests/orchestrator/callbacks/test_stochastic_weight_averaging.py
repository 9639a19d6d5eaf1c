"""StochasticWeightAveraging: which weights are averaged, the schedule, and what is left at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.callbacks import LambdaCallback, StochasticWeightAveraging
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.callbacks.test_weight_averaging import Climbs, ones
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer


@pytest.mark.parametrize(
    ("arguments", "epochs", "rates", "last"),
    [
        ({}, 5, [1, 1, 1, 1, 0.98776], 7.0),
        ({"swa_epoch_start": 2}, 5, [1, 1, 0.98776, 0.95225, 0.89694], 4.963891),
        (
            {"swa_epoch_start": 1, "annealing_epochs": 2, "annealing_strategy": "linear"},
            3,
            [1, 0.75, 0.5],
            5.5 / 3,
        ),
        ({"swa_epoch_start": 1, "annealing_epochs": 0}, 3, [0.5, 0.5, 0.5], 1.0),
        ({"avg_fn": lambda old, new, count: torch.maximum(old, new)}, 5, [1, 1, 1, 1, 0.98776], 8.0),
    ],
)
def test_weights_of_the_last_epochs_are_averaged(
    arguments: dict[str, Any], epochs: int, rates: list[float], last: float
) -> None:
    """Each epoch's initial weights count, from the first epoch on; the rate is annealed from there."""
    seen: list[float] = []
    note = LambdaCallback(
        on_train_epoch_start=lambda trainer, module: seen.append(trainer.optimizers[0].param_groups[0]["lr"])
    )
    module = Climbs()
    trainer = quiet_trainer(StochasticWeightAveraging(0.5, **arguments), note, max_epochs=epochs)
    trainer.fit(module, ones())
    assert seen == pytest.approx(rates, abs=1e-5)
    assert module.layer.weight.item() == pytest.approx(last, abs=1e-6)


def test_a_fit_that_ends_early_keeps_its_weights() -> None:
    """Without the last epoch there is no average to take."""
    module = Climbs()
    trainer = quiet_trainer(StochasticWeightAveraging(1.0, 1), max_epochs=5, max_steps=4)
    trainer.fit(module, ones())
    assert module.layer.weight.item() == 4


def test_batch_norm_gets_the_statistics_of_the_average() -> None:
    """Running statistics are the means over the training batches under the averaged weights."""

    class Normed(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    torch.manual_seed(1)
    module, batches = Normed(), loader(16)
    quiet_trainer(StochasticWeightAveraging(0.05, 1), max_epochs=3).fit(module, batches)
    with torch.no_grad():
        hidden = [module.net[0](inputs) for inputs, _ in batches]
    norm: Any = module.net[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([item.mean(0) for item in hidden]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([item.var(0) for item in hidden]).mean(0))
    assert norm.momentum == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"swa_lrs": -1.0}, "swa_lrs=-1.0"),
        ({"swa_lrs": []}, r"swa_lrs=\[\]"),
        ({"swa_epoch_start": 0}, "swa_epoch_start=0"),
        ({"swa_epoch_start": 1.5}, "swa_epoch_start=1.5"),
        ({"annealing_epochs": -1}, "annealing_epochs=-1"),
        ({"annealing_strategy": "cosine"}, "annealing_strategy='cosine'"),
        ({"avg_fn": 3}, "avg_fn=3"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Arguments that cannot work are an error that names them."""
    with pytest.raises(MisconfigurationError, match=rf"StochasticWeightAveraging\({message}\)"):
        StochasticWeightAveraging(**{"swa_lrs": 0.1, **arguments})


def test_what_cannot_be_averaged_is_refused() -> None:
    """A fit without a last epoch, and one without an optimizer, are errors before training."""
    with pytest.raises(MisconfigurationError, match=r"Trainer\(max_epochs=-1\) does not say"):
        quiet_trainer(StochasticWeightAveraging(0.1), max_epochs=-1, max_steps=3).fit(Climbs(), ones())
    with (
        pytest.raises(MisconfigurationError, match="returned 0 and 0"),
        pytest.warns(UserWarning, match="no optimizer"),
    ):
        quiet_trainer(StochasticWeightAveraging(0.1)).fit(Tiny(lambda parameters: None), loader(4))


class Statistics(Net):
    """Normalizes its input: the statistics are those of the data, whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, affine=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(inputs))


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_ranks_average_alike(tmp_path: Path) -> None:
    """Two ranks with unequal ends end with the average and rank 0's statistics, which the driver gets."""
    module, data = Statistics(), group_loader(36, batch_size=4)
    callback = StochasticWeightAveraging(0.01, 1)
    group_trainer(tmp_path, callbacks=[callback], max_epochs=2).fit(module, data)
    batches = torch.stack([inputs for inputs, _ in data.dataset])[::2].split(4)
    expected = torch.stack([batch.mean(0) for batch in batches]).mean(0)
    torch.testing.assert_close(module.norm.running_mean, expected)
    assert module.norm.num_batches_tracked == len(batches)
    plain = Statistics()
    group_trainer(tmp_path, max_epochs=1).fit(plain, data)
    torch.testing.assert_close(module.net[0].weight, (Statistics().net[0].weight + plain.net[0].weight) / 2)
