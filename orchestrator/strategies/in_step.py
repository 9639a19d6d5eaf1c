"""What strategies have in common whose training steps are collectives: no rank can run one alone.

Ranks run equally many steps. One that has no batch runs its last again with weight 0; in an evaluation, where
a rank may have had none at all, it takes another's. Nothing that is logged on the way counts. A rank without
any training batch is a `RuntimeError` that says what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from orchestrator.strategies.ranks import GroupOfRanks

_NONE = object()


class Steps(nn.Module):
    """A module whose forward is any step of another, so that its hooks see the step begin and end."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, step: Callable[..., Any], *args: Any) -> Any:
        """Run the step."""
        return step(*args)


class RanksInStep(GroupOfRanks):
    """The ranks of the default process group, which run equally many steps.

    Args:
        device: Where this rank's part of the module lives.

    Attributes:
        steps: Called with a step and its arguments, runs it as the strategy must; set in `setup`.
    """

    name = ""
    in_step = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.steps: Callable[..., Any] | None = None
        self._module: nn.Module | None = None
        self._last: tuple[Any, ...] | None = None

    def sync_gradients(self, on: bool) -> None:
        """Say whether the next backward reduces."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of what a forward pass without a backward leaves behind."""

    def remembering(self, step: Callable[..., Any] | None) -> Callable[..., Any]:
        """Return the training step, whose last arguments are kept for `run_along`."""
        steps = self.steps
        assert steps is not None, "set in setup"

        def run(*args: Any) -> Any:
            self._last = step, *args
            return steps(step, *args)

        return run

    def run_along(self) -> Any:
        """Run the last training step again, without its logging, and return its outputs. Communicates.

        Raises:
            RuntimeError: This rank has had no batch at all.
        """
        if self._last is None or self.steps is None:
            raise RuntimeError(
                f"Rank {self.rank} has no training batch at all, and Trainer(strategy={self.name!r}) needs "
                "one on each rank. Use fewer devices, a smaller batch_size, or strategy='ddp'."
            )
        with self._silent():
            return self.steps(*self._last)

    def keep_pace(self, batches: Iterable[Any], along: Callable[[Any], None]) -> Iterable[Any]:
        """Yield `batches`, then call ``along(batch)`` with the last until no rank has another. Communicates.

        A rank that has none at all takes another's first.
        """
        return self._keeping_pace(batches, along)

    def _keeping_pace(self, batches: Iterable[Any], along: Callable[[Any], None]) -> Iterator[Any]:
        mine = iter(batches)
        batch = next(mine, _NONE)
        first = self.counts(int(batch is not _NONE))
        if not any(first):
            return
        giver = first.index(1)
        last = None if all(first) else self.gather(batch if self.rank == giver else None)[giver]
        present = first
        while any(present):
            if batch is not _NONE:
                last = batch
                yield batch
            else:
                with self._silent():
                    along(last)
            batch = next(mine, _NONE)
            present = self.counts(int(batch is not _NONE))
        self.release()

    def whole_tensor(self, item: Any) -> Any:
        """Return the whole tensor on rank 0, on the CPU, for a rank's part of one; anything else as it is."""
        raise NotImplementedError

    def whole(self, state: Any) -> Any:
        """Return `state` with whole tensors on rank 0, on the CPU, and nothing in their place elsewhere."""
        if isinstance(state, dict):
            found = {key: self.whole(value) for key, value in state.items()}
            return found if type(state) is dict else _as(state, found)
        if isinstance(state, (list, tuple)) and not hasattr(state, "_fields"):
            return type(state)(self.whole(item) for item in state)
        return self.whole_tensor(state)

    @contextmanager
    def _silent(self) -> Iterator[None]:
        """A context in which what the module logs is dropped."""
        assert self._module is not None
        state = self._module.__dict__
        sink = state["_log_sink"]
        state["_log_sink"] = _drop
        try:
            yield
        finally:
            state["_log_sink"] = sink


def _drop(*args: Any, **kwargs: Any) -> None:
    """Log nothing."""


def _as(state: dict[Any, Any], found: dict[Any, Any]) -> dict[Any, Any]:
    """Return `found` in a copy of `state`, whose class and notes (a state dict's versions) stay."""
    copy = type(state)(found)
    if hasattr(state, "_metadata"):
        copy._metadata = state._metadata  # type: ignore[attr-defined]
    return copy
