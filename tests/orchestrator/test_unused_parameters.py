"""Modules that leave some parameters out of the loss, on two workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.orchestrator import groups


class HalfUsed(groups.Net):
    """Has a layer that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.ray
def test_unused_parameters_are_found_when_asked(tmp_path: Path) -> None:
    """With ddp_find_unused_parameters_true a module trains whose loss leaves parameters out; these stay."""
    module = HalfUsed()
    before = {name: item.clone() for name, item in module.state_dict().items()}
    trainer = groups.group_trainer(tmp_path, strategy="ddp_find_unused_parameters_true")
    trainer.fit(module, groups.loader(64))
    assert trainer.global_step == 8
    changed = {name for name, item in module.state_dict().items() if not torch.equal(item, before[name])}
    assert changed == {name for name in before if name.startswith("net.")}


@pytest.mark.ray
def test_unused_parameters_are_an_error_otherwise(tmp_path: Path) -> None:
    """With ddp_find_unused_parameters_false torch refuses the second step, naming the option."""
    trainer = groups.group_trainer(tmp_path, strategy="ddp_find_unused_parameters_false")
    with pytest.raises(RuntimeError, match="find_unused_parameters=True"):
        trainer.fit(HalfUsed(), groups.loader(64))
