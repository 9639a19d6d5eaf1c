"""What one rank of a data-parallel fit has for itself: random states, its place in the data, what it logged.

Weights, optimizers, schedulers, callbacks and counters are alike on all ranks and are not part of it. Taken
at every commit, so it copies only what has changed, and waits for no device where nothing lies on one. What
it says of the data is enough to read on at the very sample. Pickled between the ranks of a run, never into
files.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from modules import rng
from modules.rng_mark import RngMark, RngMarker
from orchestrator.feed import ReadingState
from orchestrator.metric_objects import is_metric

if TYPE_CHECKING:
    from orchestrator.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateState:
    """One rank's own state behind a commit.

    Attributes:
        random: Of the process's generators; parts that are as in `epoch` may be None when it travels.
        epoch_index: The epoch, from 0; between epochs the next one.
        batches: Of the epoch that the rank has used.
        validated: Validation has run since the last of them.
        begun: The epoch has begun; False between epochs.
        totals: Batches and samples of the epoch, over all ranks.
        generators: States of the loader's own generators.
        own: What the loader says itself of where it stands.
        logged: What was logged in the epoch.
        buffers: The module's buffers, in its order; while it travels, None for one that is as in the last
            whole state.
        epoch: The random states with which the epoch's first batch was asked for; None when it travels
            without.
        outputs: What the last training step returned, for hooks that come behind it.
    """

    random: RngMark
    epoch_index: int
    batches: int
    validated: bool
    begun: bool
    totals: tuple[int, int]
    generators: list[Tensor]
    own: dict[str, Any]
    logged: dict[str, Any]
    buffers: list[Tensor | None]
    epoch: ReadingState | None
    outputs: Any = None

    def reading(self) -> ReadingState:
        """Return what the feed needs to go on, but for the random states that the process goes on with."""
        assert self.epoch is not None
        return replace(self.epoch, rng=rng.capture(), generators=self.generators, own=self.own)


class PrivateStates:
    """Takes the private states of one rank, and puts one back.

    Args:
        engine: The run.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._marker = RngMarker()
        self._buffers = list(engine.module.buffers())
        always = {
            id(buffer)
            for layer in engine.module.modules()
            if isinstance(layer, _NormBase)  # its kernels change statistics without telling
            for buffer in layer.buffers(recurse=False)
        }
        self._always = [id(buffer) in always for buffer in self._buffers]
        self._versions: list[int] = []
        self._has_metrics = any(is_metric(item) for item in _parts(engine.module))
        self._last: PrivateState | None = None

    def take(
        self,
        *,
        batches: int,
        validated: bool,
        begun: bool = True,
        whole: bool = False,
        outputs: Any = None,
    ) -> PrivateState:
        """Return this rank's state as it is now.

        Args:
            batches: Of the epoch that were used.
            validated: Validation has run since the last of them.
            begun: The epoch has begun.
            whole: With all that does not change within an epoch.
            outputs: What the last training step returned.
        """
        engine = self._engine
        feed = engine.feed
        assert feed is not None
        last = self._last
        epoch = feed.reading({}) if whole or last is None else last.epoch
        taken = PrivateState(
            random=self._marker.take(),
            epoch_index=engine.state.epoch,
            batches=batches,
            validated=validated,
            begun=begun,
            totals=feed.totals(batches),
            generators=[generator.get_state() for generator in feed.loader.generators()],
            own=feed.loader.own_state(),
            logged=self._logged(),
            buffers=self._copied_buffers(whole),
            epoch=epoch,
            outputs=outputs,
        )
        if whole:
            self._last = taken
        return taken

    def put(self, state: PrivateState) -> None:
        """Make buffers and what was logged as they were; random states and the feed are the caller's."""
        slots = self._engine.train_slots
        with torch.no_grad():
            for buffer, saved in zip(self._buffers, state.buffers, strict=True):
                if saved is not None:
                    buffer.copy_(saved)
        if self._has_metrics:
            for item in _parts(self._engine.module):
                if is_metric(item):
                    item.reset()
        slots.clear()
        slots.restore(state.logged)

    def dumps(self, state: PrivateState) -> bytes:
        """Return the state as it travels at a commit: without what stands in the last whole one."""
        whole, random = self._last, state.random
        if whole is not None and whole is not state:
            random = random._replace(
                python=None if random.python is whole.random.python else random.python,
                numpy=None if random.numpy is whole.random.numpy else random.numpy,
            )
            buffers = [
                None if own is before else own
                for own, before in zip(state.buffers, whole.buffers, strict=True)
            ]
            state = replace(state, random=random, epoch=None, buffers=buffers)
        return dumps(state)

    def _logged(self) -> dict[str, Any]:
        return self._engine.train_slots.state(objects=self._has_metrics)

    def _copied_buffers(self, whole: bool) -> list[Tensor | None]:
        if not self._buffers:
            return []
        if whole or self._last is None:
            self._versions = [buffer._version for buffer in self._buffers]
            return [buffer.detach().clone() for buffer in self._buffers]
        known = zip(self._buffers, self._last.buffers, self._versions, self._always, strict=True)
        return [
            buffer.detach().clone() if always or buffer._version != version else before
            for buffer, before, version, always in known
        ]


def completed(state: PrivateState, whole: PrivateState) -> PrivateState:
    """Return a state that has travelled without what stands in the last whole one of its rank."""
    random = state.random
    return replace(
        state,
        random=random._replace(
            python=random.python or whole.random.python, numpy=random.numpy or whole.random.numpy
        ),
        epoch=state.epoch or whole.epoch,
        buffers=[
            own if own is not None else before
            for own, before in zip(state.buffers, whole.buffers, strict=True)
        ],
    )


# ---------------------------------------------------------------- travelling


def dumps(state: PrivateState) -> bytes:
    """Return the state as bytes; outputs that cannot travel are left out."""
    try:
        return _dumps(state)
    except Exception:  # of any kind: the user's objects say so as they like
        return _dumps(replace(state, outputs=None))


def loads(data: bytes) -> PrivateState:
    """Return what `dumps` was given. The bytes must come from a rank of this run."""
    state = pickle.loads(data)
    assert isinstance(state, PrivateState)
    return state


def _dumps(state: PrivateState) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(state)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Writes tensors as plain bytes on the CPU, which is quicker than torch's way by far."""

    def reducer_override(self, item: Any) -> Any:
        """Return how to rebuild a plain tensor."""
        if type(item) is not Tensor or item.layout is not torch.strided or item.is_quantized:
            return NotImplemented
        plain = item.detach().cpu().contiguous()
        data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return _tensor, (str(plain.dtype).removeprefix("torch."), tuple(plain.shape), data)


def _tensor(dtype: str, shape: Sequence[int], data: bytes) -> Tensor:
    kind = getattr(torch, dtype)
    if not data:
        return torch.empty(tuple(shape), dtype=kind)
    return torch.frombuffer(bytearray(data), dtype=kind).reshape(tuple(shape))


def _parts(module: nn.Module) -> list[Any]:
    """Return what could be a metric object in a module."""
    return [item for layer in module.modules() for item in (layer, *vars(layer).values())]
