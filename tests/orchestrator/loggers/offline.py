"""What the tests of loggers for services share: a guard on the network, and short runs in this process or on
a group.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from tests.orchestrator.groups import Net, group_trainer, loader


@contextmanager
def nothing_sent() -> Iterator[None]:
    """Fail when something in this process opens a connection to anywhere but this machine."""
    reached: list[str] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.type == socket.SOCK_STREAM:
            host = str(address[0])
            if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
                reached.append(f"{host}:{address[1]}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", watched)
        yield
    assert reached == []


class Fails(pl.Callback):
    """Ends training by an exception, after the first epoch."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        raise RuntimeError("enough")


def trainer_for(logger: Any, root: Path, *callbacks: pl.Callback, devices: int = 1) -> pl.Trainer:
    """A Trainer that logs each step and keeps its best checkpoint."""
    arguments: dict[str, Any] = {
        "logger": logger,
        "callbacks": [pl.callbacks.ModelCheckpoint(root / "checkpoints"), *callbacks],
        "enable_checkpointing": True,
        "log_every_n_steps": 1,
        "max_epochs": 1,
    }
    if devices > 1:
        return group_trainer(root, devices, **arguments)
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        default_root_dir=root,
        **arguments,
    )


def fit(trainer: pl.Trainer) -> Net:
    """Train a small module that logs ``train_loss`` and ``val_loss``, and return it."""
    net = Net(width=4)
    trainer.fit(net, loader(16), loader(8))
    return net
