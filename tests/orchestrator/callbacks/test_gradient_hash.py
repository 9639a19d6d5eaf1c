"""The hash of the gradients: that it tells any two apart, and stands in the record of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from orchestrator.callbacks import GradientHash
from orchestrator.callbacks.gradient_hash import hash_of
from orchestrator.loggers import CSVLogger
from orchestrator.report.curves import read_curves
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer


def test_every_bit_counts() -> None:
    """One bit of one gradient, also one that is not there."""
    net = nn.Linear(3, 2, dtype=torch.bfloat16)
    found = {hash_of(net)}
    assert net.weight is not None
    net.weight.grad = torch.zeros(2, 3, dtype=torch.bfloat16)
    found.add(hash_of(net))
    net.weight.grad[1, 2] = -0.0
    found.add(hash_of(net))
    assert len(found) == 3 and all(float(torch.tensor(float(item))) == item for item in found)


def test_it_is_recorded_at_log_points(tmp_path: Path) -> None:
    """The same for the same training, another after another step."""
    curves = []
    for name in ("a", "b"):
        trainer = quiet_trainer(
            GradientHash(), logger=CSVLogger(tmp_path / name), max_epochs=1, log_every_n_steps=2
        )
        trainer.fit(Tiny(), loader(16))
        curves.append(read_curves(Path(str(trainer.log_dir)))["gradient_hash"])
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == [1, 3] and curves[0][0][1] != curves[0][1][1]
