"""WeightAveraging and EMAWeightAveraging: what is averaged when, and who sees the average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator as pl
from orchestrator.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import quiet_trainer


class Climbs(pl.LightningModule):
    """One weight that grows by 1 at each step; remembers with which weight it was validated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return -self.layer(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(self.layer.weight.item())
        self.log("weight", self.layer.weight.detach().squeeze())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def ones(batches: int = 2) -> Any:
    """So many batches of ones."""
    data: Any = torch.ones(2 * batches, 1)
    return torch.utils.data.DataLoader(data, batch_size=2)


def climb(callback: pl.Callback, **arguments: Any) -> Climbs:
    module = Climbs()
    quiet_trainer(callback, max_epochs=3, **arguments).fit(module, ones(), ones(1))
    return module


@pytest.mark.parametrize(
    ("callback", "seen", "last"),
    [
        (WeightAveraging(), [1.5, 2.5, 3.5], 3.5),
        (EMAWeightAveraging(decay=0.5), [1.5, 3.125, 5.03125], 5.03125),
        (EMAWeightAveraging(decay=0.5, update_every_n_steps=2), [1, 2, 3.5], 3.5),
        (EMAWeightAveraging(decay=0.5, update_starting_at_step=3), [2, 4, 5.25], 5.25),
        (EMAWeightAveraging(decay=0.5, update_every_n_steps=0, update_starting_at_epoch=1), [2, 4, 4], 5),
        (WeightAveraging(avg_fn=lambda old, new, count: torch.maximum(old, new)), [2, 4, 6], 6),
    ],
    ids=["mean", "moving", "every", "from-step", "from-epoch", "function"],
)
def test_the_average_is_validated_and_left(callback: pl.Callback, seen: list[float], last: float) -> None:
    """Validation runs with the average once there is one, training without it, and the end has it."""
    module = climb(callback)
    assert module.seen == seen
    assert module.layer.weight.item() == last


def test_a_checkpoint_holds_both_weights(tmp_path: Path) -> None:
    """``state_dict`` is the average, so that it loads like any; the weights of training are beside it."""
    climb(EMAWeightAveraging(decay=0.5), enable_checkpointing=True, default_root_dir=tmp_path, logger=False)
    content = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert content["state_dict"]["layer.weight"].item() == 5.03125
    assert content["current_model_state"]["layer.weight"].item() == 6
    assert content["averaging_state"]["n_averaged"].item() == 6


def test_a_failed_validation_leaves_the_weights_of_training() -> None:
    """An exception while the average stands in the module puts the training weights back."""

    class Fails(Climbs):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("boom")

    module = Fails()
    with pytest.raises(RuntimeError, match="boom"):
        quiet_trainer(WeightAveraging()).fit(module, ones(), ones(1))
    assert module.layer.weight.item() == 2


def test_buffers_are_averaged_on_request() -> None:
    """Buffers are averaged with use_buffers, and are training's without; counts are the newest."""

    class Normed(Climbs):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(1))
            self.register_buffer("count", torch.zeros(1, dtype=torch.long))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.total += 1
            self.count += 1
            return super().training_step(batch, batch_idx)

    for use_buffers, expected in ((True, 3.5), (False, 6.0)):
        module = Normed()
        quiet_trainer(WeightAveraging(use_buffers=use_buffers), max_epochs=3).fit(module, ones())
        assert (module.total.item(), module.count.item()) == (expected, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightAveraging(avg=max), "WeightAveraging has no argument 'avg'. Did you mean 'avg_fn'"),
        (lambda: WeightAveraging(avg_fn=0.9), r"WeightAveraging\(avg_fn=0.9\) cannot be called"),
        (lambda: EMAWeightAveraging(decay=1.5), r"EMAWeightAveraging\(decay=1.5\) is no weight"),
        (lambda: EMAWeightAveraging(update_every_n_steps=-1), r"update_every_n_steps=-1\) is not a count"),
        (lambda: EMAWeightAveraging(update_starting_at_epoch=0.5), "update_starting_at_epoch=0.5"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    """Arguments that cannot work are an error that names them."""
    with pytest.raises(MisconfigurationError, match=message):
        make()


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_ranks_average_alike(tmp_path: Path) -> None:
    """On two ranks with unequal ends the result is that of one process, and rank 0 saves the average."""
    checkpoint = ModelCheckpoint(tmp_path)
    trainer = group_trainer(
        tmp_path,
        callbacks=[EMAWeightAveraging(decay=0.5), checkpoint],
        enable_checkpointing=True,
        max_epochs=3,
    )
    module, data = Climbs(), torch.utils.data.DataLoader(torch.ones(5, 1), batch_size=2)  # type: ignore[arg-type]
    trainer.fit(module, data, ones(2))
    assert module.layer.weight.item() == 5.03125
    content = torch.load(checkpoint.best_model_path, weights_only=True)
    assert content["current_model_state"]["layer.weight"].item() == 6
