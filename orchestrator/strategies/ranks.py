"""What strategies of several ranks have in common: who they are, and plain messages between them.

Values travel through the default process group, pickled; counts go over the CPU, so that no device waits. All
ranks must call these in the same order; a peer that is gone makes them raise, one that hangs makes them time
out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class GroupOfRanks:
    """The ranks of the default process group.

    Args:
        device: Where this rank's module lives.
    """

    clips = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def adopt(
        self, module: nn.Module, optimizers: list[torch.optim.Optimizer]
    ) -> list[torch.optim.Optimizer]:
        """Return `optimizers`: they step their parameters themselves."""
        return optimizers

    def scale_gradients(self, parameters: Iterable[nn.Parameter], factor: float | Tensor) -> None:
        """Multiply the parameters' gradients by `factor`."""
        gradients = [item.grad for item in parameters if item.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, by rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensors of all ranks of `group`, stacked along a new first dimension."""
        chosen = dist.group.WORLD if group is None else group
        if sync_grads and torch.is_grad_enabled() and tensor.requires_grad:
            import torch.distributed.nn.functional as with_gradients

            return torch.stack(with_gradients.all_gather(tensor, chosen))
        found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(chosen))]
        dist.all_gather(found, tensor.detach().contiguous(), chosen)
        return torch.stack(found)

    def broadcast(self, value: T, source: int = 0) -> T:
        """Return the `value` of rank `source`."""
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
        if self.device.type == "cuda":
            dist.barrier(device_ids=[self.device.index])
        else:
            dist.barrier()
