"""What a DDPStrategy says reaches DistributedDataParallel on the workers; batch statistics of all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orchestrator as pl
from orchestrator.batch_norm import SyncedOnCPU
from orchestrator.strategies import DDPStrategy
from tests.orchestrator.groups import Net, group_trainer, loader, points
from tests.orchestrator.tiny import assert_equal_weights

pytestmark = pytest.mark.ray


def halve(state: float, bucket: Any) -> torch.futures.Future[Tensor]:
    """Average a bucket over ranks and multiply it by `state`."""
    total = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return total.then(lambda done: done.value()[0] / 2 * state)  # type: ignore[no-any-return]


class Descends(Net):
    """Plain gradient descent, whose steps are proportional to gradients."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(root: Path, strategy: Any, module: Net, **arguments: Any) -> Net:
    """A module after one epoch on 2 ranks."""
    group_trainer(root, strategy=strategy, max_epochs=1, **arguments).fit(module, loader(16, batch_size=8))
    return module


def test_options_reach_ddp_and_keep_the_numbers(tmp_path: Path) -> None:
    """Buckets, views and static graphs are another way to the same bits on 2 ranks."""
    options = DDPStrategy(gradient_as_bucket_view=True, static_graph=True, bucket_cap_mb=0.0001)
    assert_equal_weights(fitted(tmp_path, options, Descends()), fitted(tmp_path, "ddp", Descends()))


def test_a_hook_reduces_in_ddps_place(tmp_path: Path) -> None:
    """A communication hook with its state decides what the gradients are: half of them, half a step."""
    start, whole = Descends(), fitted(tmp_path, "ddp", Descends())
    halved = fitted(tmp_path, DDPStrategy(ddp_comm_hook=halve, ddp_comm_state=0.5), Descends())
    for name, weight in halved.state_dict().items():
        step = whole.state_dict()[name] - start.state_dict()[name]
        torch.testing.assert_close(weight - start.state_dict()[name], step / 2)


class Normed(pl.LightningModule):
    """A linear layer between two batch normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.seen: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(type(self.net[0]).__name__)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_sync_batchnorm_is_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    """Two ranks with 4 samples each normalise and train as one process with 8; the layers come back as
    they were.
    """
    arguments: dict[str, Any] = {"max_epochs": 1, "sync_batchnorm": True}
    alone, together, apart = Normed(), Normed(), Normed()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(accelerator="cpu", devices=1, **quiet, **arguments).fit(
        alone, torch.utils.data.DataLoader(points(32), batch_size=8)
    )
    group_trainer(tmp_path, **arguments).fit(together, torch.utils.data.DataLoader(points(32), batch_size=4))
    group_trainer(tmp_path, max_epochs=1).fit(apart, torch.utils.data.DataLoader(points(32), batch_size=4))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(apart.net[2].running_var, alone.net[2].running_var, rtol=1e-3)  # type: ignore[arg-type]
    assert set(together.seen) == {SyncedOnCPU.__name__}
    assert {type(layer) for layer in together.net} == {nn.BatchNorm1d, nn.Linear}


def test_sync_batchnorm_waits_for_nobody_at_an_uneven_end(tmp_path: Path) -> None:
    """Where only one rank has a batch left, it normalises by its own."""
    module = Normed()
    data = torch.utils.data.DataLoader(points(10), batch_size=4)
    group_trainer(tmp_path, max_epochs=2, sync_batchnorm=True).fit(module, data)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
