"""A batch is copied on a stream of its own, and what computes waits for it on the device alone."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import orchestrator as pl
from orchestrator.device_copy import DeviceCopies
from orchestrator.hooks import HookTable
from orchestrator.transfer import build_transfer
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, quiet_trainer

Pair = namedtuple("Pair", "inputs targets")
META = torch.device("meta")
"""Stands for a CUDA device: copying there reads nothing."""


class FakeCuda:
    """Notes what streams are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.on = "computing"
        fake = self

        class Stream:
            def __init__(self, target: Any = None, name: str = "copying") -> None:
                self.name = name

            def wait_stream(self, other: Any) -> None:
                fake.log.append(f"{self.name} waits for {other.name}")

        @contextmanager
        def stream(which: Stream) -> Iterator[None]:
            before, fake.on = fake.on, which.name
            yield
            fake.on = before

        to = Tensor.to

        def noted(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
            fake.log.append(f"copy on {fake.on}, blocking {not options.get('non_blocking')}")
            return to(tensor, *args, **options)

        def pin(tensor: Tensor) -> Tensor:
            fake.log.append("pin")
            return tensor.clone()

        computing = Stream(name="computing")
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda target: computing)
        monkeypatch.setattr(Tensor, "to", noted)
        monkeypatch.setattr(Tensor, "pin_memory", pin)
        monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: tensor.dtype == torch.int64)
        monkeypatch.setattr(
            Tensor, "record_stream", lambda tensor, which: fake.log.append(f"kept for {which.name}")
        )


def test_copies_run_beside_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through pinned memory, without blocking the host; the steps' stream waits once a batch."""
    fake = FakeCuda(monkeypatch)
    moved = DeviceCopies(META).move(Pair(torch.zeros(2), [torch.zeros(2, dtype=torch.int64), "a"]))
    assert isinstance(moved, Pair) and moved.targets[1] == "a"
    assert moved.inputs.device == moved.targets[0].device == META
    assert fake.log == [
        *("pin", "copy on copying, blocking False", "kept for computing"),
        *("copy on copying, blocking False", "kept for computing"),
        "computing waits for copying",
    ]


def test_what_is_no_plain_tensor_of_the_host_stays_on_the_steps_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sparse tensors and subclasses, and what moves itself."""

    class Own(Tensor):
        pass

    class Moves:
        def to(self, target: torch.device) -> str:
            return f"to {target}"

    fake = FakeCuda(monkeypatch)
    copies = DeviceCopies(META)
    copies.move([torch.zeros(2).as_subclass(Own), torch.zeros(2, 2).to_sparse()])
    assert set(fake.log[:-1]) == {"copy on computing, blocking False"}
    assert fake.log[-1] == "computing waits for copying"
    assert copies.move(Moves()) == "to meta"


def test_nothing_is_made_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a batch stays as it is, with and without hooks around the transfer."""

    class Hooked(Tiny):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch, "hooked"]

    monkeypatch.setattr(torch.cuda, "Stream", None)
    trainer = quiet_trainer()
    for module, expected in ((Tiny(), None), (Hooked(), [1, "hooked"])):
        transfer = build_transfer(HookTable(trainer, module, None, []), torch.device("cpu"), None)
        assert (None if transfer is None else transfer(1, 0)) == expected


@pytest.mark.gpu
def test_training_computes_what_it_computes_without() -> None:
    """On a GPU, from pinned memory and from other, weights equal those of plain moves."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

    class Plain(Tiny):
        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            return [item.to(device) for item in batch]

    found = []
    for kind, pins in ((Plain, False), (Tiny, False), (Tiny, True)):
        torch.manual_seed(1)
        module = kind(dropout=0.2)
        trainer = pl.Trainer(
            accelerator="gpu", devices=1, max_epochs=3, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader(64, shuffle=True, pin_memory=pins))
        found.append(module.cpu())
    for module in found[1:]:
        assert_equal_weights(module, found[0])
