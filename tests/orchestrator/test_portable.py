"""What cannot be sent to a worker is refused before any is started, by the name the user knows it by."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from cluster.errors import SerializationError
from orchestrator import portable
from orchestrator.job import Job
from tests.orchestrator.groups import Net, group_trainer, loader


class Holder(pl.Callback):
    """Holds what it is given."""

    def __init__(self, held: Any = None) -> None:
        self.held = held


class Data(pl.LightningDataModule):
    """Holds a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def train_dataloader(self) -> Any:
        return loader(8)


def locked_net() -> Net:
    """A module that holds a lock deep inside."""
    module = Net()
    module.net[0].extra = {"lock": threading.Lock()}  # type: ignore[assignment]
    return module


def locked_collate() -> Any:
    """A function over a lock."""
    lock = threading.Lock()
    return lambda batch: (lock, batch)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda root: group_trainer(root).fit(locked_net(), loader(8)),
            r"The module Net cannot be sent to another process: its .*extra\['lock'\] is a _thread\.lock",
        ),
        (
            lambda root: group_trainer(root, callbacks=[Holder(threading.Lock())]).fit(Net(), loader(8)),
            r"The callback Holder cannot be sent to another process: its held is a _thread\.lock",
        ),
        (
            lambda root: group_trainer(root).fit(Net(), loader(8, collate_fn=locked_collate())),
            r"The train loader given to fit\(\) cannot be sent .*: its collate_fn\.lock is a _thread\.lock",
        ),
        (
            lambda root: group_trainer(root).fit(Net(), datamodule=Data()),
            r"The data module Data cannot be sent to another process: its lock is a _thread\.lock",
        ),
    ],
    ids=["module", "callback", "loader", "datamodule"],
)
def test_what_cannot_be_sent_is_named(
    call: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the argument and the attribute, and no worker is asked for."""
    monkeypatch.setattr("cluster.pool.lease", None)  # whoever asks for workers fails otherwise
    with pytest.raises(SerializationError, match=message):
        call(tmp_path)


def test_large_modules_are_not_copied_to_find_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written in the rehearsal is small, whatever the size of tensors and arrays."""
    written: list[int] = []
    monkeypatch.setattr(portable._Nowhere, "write", lambda self, data: written.append(len(data)))
    module = Net()
    module.table = torch.nn.Parameter(torch.zeros(1000, 1000))
    module.rows = torch.zeros(1000, 100).numpy()  # type: ignore[assignment]
    job = Job(
        fn="fit",
        module=module,
        datamodule=None,
        loaders={"train": loader(1000)},
        return_predictions=True,
        verbose=False,
    )
    portable.check(group_trainer(tmp_path), job)
    assert 0 < sum(written) < 100_000
