"""What strategies of several ranks have in common: who they are, and plain messages between them.

Values travel through the default process group, pickled; counts go over the CPU, so that no device waits. All
ranks must call these in the same order; a peer that is gone makes them raise, one that hangs makes them time
out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.strategies.strategy import Dealing
from orchestrator.strategies.whole import Whole

T = TypeVar("T")


class GroupOfRanks(Whole):
    """The ranks of the default process group.

    Args:
        device: Where this rank's module lives.

    Attributes:
        before_meeting: Called before ranks exchange values other than a step's own; None for nothing.
        meetings: How often they have.
    """

    dealing: Dealing | None = None

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before_meeting: Callable[[], None] | None = None
        self.meetings = 0
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, by rank."""
        self._meet()
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensors of all ranks of `group`, stacked along a new first dimension."""
        self._meet()
        chosen = dist.group.WORLD if group is None else group
        if sync_grads and torch.is_grad_enabled() and tensor.requires_grad:
            import torch.distributed.nn.functional as with_gradients

            return torch.stack(with_gradients.all_gather(tensor, chosen))
        found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(chosen))]
        dist.all_gather(found, tensor.detach().contiguous(), chosen)
        return torch.stack(found)

    def broadcast(self, value: T, source: int = 0) -> T:
        """Return the `value` of rank `source`."""
        self._meet()
        box = [value]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def add_up(self, value: Tensor) -> Tensor:
        """Return the sum of every rank's `value`, on its device, without waiting."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    def counts(self, number: int) -> list[int]:
        """Return every rank's `number`, by rank."""
        numbers = [torch.zeros((), dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(numbers, torch.tensor(number))  # on the CPU, over Gloo: no device waits
        return [int(item) for item in numbers]

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._meet()
        if self.device.type == "cuda":
            dist.barrier(device_ids=[self.device.index])
        else:
            dist.barrier()

    def send(self, state: Any, to: Sequence[int]) -> None:
        """Send containers of tensors and values to other ranks, which `receive` them; tensors as they are,
        one after the other.
        """
        tensors: list[Tensor] = []
        skeleton = _without_tensors(state, tensors)
        for rank in to:
            dist.send_object_list([skeleton], dst=rank)
            for tensor in tensors:
                if tensor.numel():
                    dist.send(tensor.reshape(-1).view(torch.uint8), dst=rank)

    def receive(self, source: int) -> Any:
        """Return what rank `source` sends, with tensors on the CPU."""
        box: list[Any] = [None]
        dist.recv_object_list(box, src=source)

        def fill(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
            tensor = torch.empty(shape, dtype=dtype)
            if tensor.numel():
                dist.recv(tensor.view(-1).view(torch.uint8), src=source)
            return tensor

        return _with_tensors(box[0], fill)

    def _meet(self) -> None:
        self.meetings += 1
        if self.before_meeting is not None:
            self.before_meeting()


@dataclass(frozen=True, slots=True)
class _Shape:
    """Stands for a tensor that comes by itself."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def _without_tensors(state: Any, tensors: list[Tensor]) -> Any:
    """Return `state` with a `_Shape` for each tensor, which goes into `tensors`, on the CPU."""
    if isinstance(state, Tensor):
        plain = state.detach().cpu().contiguous()
        tensors.append(plain)
        return _Shape(plain.dtype, tuple(plain.shape))
    if isinstance(state, dict):
        return {key: _without_tensors(item, tensors) for key, item in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_without_tensors(item, tensors) for item in state)
    return state


def _with_tensors(state: Any, fill: Callable[[torch.dtype, tuple[int, ...]], Tensor]) -> Any:
    """Return `state` with tensors again, in the order in which they were taken out."""
    if isinstance(state, _Shape):
        return fill(state.dtype, state.shape)
    if isinstance(state, dict):
        return {key: _with_tensors(item, fill) for key, item in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_with_tensors(item, fill) for item in state)
    return state
