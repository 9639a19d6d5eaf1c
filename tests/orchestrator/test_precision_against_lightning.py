"""The same module in the same precision ends with the same bits under Lightning itself."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from tests.orchestrator.tiny import assert_equal_weights, loader, loss_of, network, quiet_trainer

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]


def module_of(base: Any) -> Any:
    """A module of the given base class."""

    class Same(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)

    return Same()


@pytest.mark.parametrize("precision", ["64-true", "32-true", "bf16-true", "16-true", "bf16-mixed"])
def test_weights_are_lightnings(precision: str, tmp_path: Path) -> None:
    """After two epochs of SGD with clipping the weights equal Lightning's to the bit, in the same type."""
    lightning = pytest.importorskip("lightning.pytorch")
    ours, theirs = module_of(pl.LightningModule), module_of(lightning.LightningModule)
    options: dict[str, Any] = {"max_epochs": 2, "gradient_clip_val": 0.5, "precision": precision}
    quiet_trainer(**options).fit(ours, loader(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **copy.deepcopy(options),
        ).fit(theirs, loader(16))
    assert ours.net[0].weight.dtype == theirs.net[0].weight.dtype
    assert_equal_weights(ours.net, theirs.net)
