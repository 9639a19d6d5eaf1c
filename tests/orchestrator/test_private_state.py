"""What a rank has for itself travels whole, and is put back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import orchestrator as pl
from orchestrator.private_state import PrivateState, PrivateStates, completed, dumps, loads
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer


class Keeps(Tiny):
    """Has statistics, a counter that changes in place, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("constant", torch.arange(5.0))


def inside(act: Any, tmp_path: Path) -> None:
    """Call `act` with the engine in the middle of an epoch."""

    class Acts(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            if trainer.global_step == 2:
                act(trainer.engine)

    quiet_trainer(Acts(), default_root_dir=tmp_path).fit(Keeps(), loader(24))


def take(states: PrivateStates, *, whole: bool = False) -> PrivateState:
    return states.take(batches=2, validated=False, whole=whole)


def test_buffers_are_put_back_whether_they_had_changed_or_not(tmp_path: Path) -> None:
    """Going back undoes changes since the state was taken, also of a buffer that had not changed before."""

    def act(engine: Any) -> None:
        states = PrivateStates(engine)
        take(states, whole=True)
        module = engine.module
        module.norm(torch.randn(4, 2))
        state = take(states)
        expected = [buffer.clone() for buffer in module.buffers()]
        module.norm(torch.randn(4, 2))
        module.count.add_(1)
        states.put(state)
        assert all(torch.equal(*pair) for pair in zip(module.buffers(), expected, strict=True))

    inside(act, tmp_path)


def test_only_what_has_changed_travels(tmp_path: Path) -> None:
    """At a commit constants and unmoved random states stay behind, and are filled in where it arrives."""

    def act(engine: Any) -> None:
        states = PrivateStates(engine)
        whole = take(states, whole=True)
        engine.module.count.add_(1)
        state = take(states)
        sent = loads(states.dumps(state))
        names = [name for name, _ in engine.module.named_buffers()]
        left = {name for name, item in zip(names, sent.buffers, strict=True) if item is None}
        assert left == {"constant"}
        assert sent.random.python is None
        assert sent.epoch is None
        arrived = completed(sent, loads(dumps(whole)))
        assert arrived.random[:2] == state.random[:2]
        pairs: list[tuple[Tensor | None, Tensor | None]] = list(
            zip(arrived.buffers, state.buffers, strict=True)
        )
        assert all(one is not None and other is not None and torch.equal(one, other) for one, other in pairs)

    inside(act, tmp_path)


def test_outputs_that_cannot_travel_are_left_out(tmp_path: Path) -> None:
    """A step may return anything; what does not pickle does not stop the run."""

    def act(engine: Any) -> None:
        states = PrivateStates(engine)
        state = states.take(batches=2, validated=False, whole=True, outputs={"file": open(__file__)})  # noqa: SIM115
        assert loads(dumps(state)).outputs is None
        state.outputs["file"].close()

    inside(act, tmp_path)
