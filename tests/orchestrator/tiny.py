"""What the tests of the engine in one process share: a small module, data, and a quiet Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl

FEATURES = 4


def points(length: int, seed: int = 3) -> TensorDataset:
    """`length` inputs of `FEATURES` numbers with targets of shape (1,), the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(length, FEATURES, generator=generator)
    return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True).sin())


def loader(length: int, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    """A loader over `points`."""
    return DataLoader(points(length), batch_size=batch_size, **options)


def network(dropout: float = 0.0) -> nn.Sequential:
    """Two layers whose weights are the same at every call, and which leaves the random state alone."""
    net = nn.utils.skip_init(nn.Linear, FEATURES, 8), nn.utils.skip_init(nn.Linear, 8, 1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in net:
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return nn.Sequential(net[0], nn.Tanh(), nn.Dropout(dropout), net[1])


def loss_of(net: nn.Module, batch: Any) -> Tensor:
    """The mean squared error of a batch."""
    inputs, targets = batch
    return nn.functional.mse_loss(net(inputs), targets)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Plain gradient descent."""
    return torch.optim.SGD(parameters, lr=0.1)


class Tiny(pl.LightningModule):
    """Trains `network` and logs nothing.

    Args:
        configure: Returns what ``configure_optimizers`` returns, from the parameters.
        dropout: Of the network.
    """

    def __init__(self, configure: Callable[[Any], Any] = sgd, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = network(dropout)
        self.configure = configure

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return loss_of(self.net, batch)

    def configure_optimizers(self) -> Any:
        return self.configure(self.parameters())


class Validated(Tiny):
    """Logs ``val_loss`` in validation and ``test_loss`` in testing, and predicts."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", loss_of(self.net, batch))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("test_loss", loss_of(self.net, batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0])


def quiet_trainer(*callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    """A Trainer in this process that trains one epoch and writes nothing, unless told otherwise."""
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **{**defaults, **arguments})


def assert_equal_weights(left: nn.Module, right: nn.Module) -> None:
    """All parameters and buffers are equal to the bit."""
    one, other = left.state_dict(), right.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
