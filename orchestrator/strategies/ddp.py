"""Data parallel: every rank holds all weights, gradients are averaged by torch's `DistributedDataParallel`.

The arithmetic is DDP's own to the bit, because it is DDP that does it: the training step runs inside a
wrapper module whose forward it is. Where ranks have unequal batches the loops leave DDP aside for that step
and call `reduce_gradients`, in which a rank without a gradient counts as zero. A peer that dies makes the
collective raise; a peer that hangs makes it time out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class _TrainingStep(nn.Module):
    """A module whose forward is another's training step, so that DDP sees the forward pass begin and end."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return cast(Any, self.module).training_step(*args)


class DDPStrategy:
    """The strategy of ranks that average gradients in the default process group.

    Args:
        device: Where this rank's copy of the module lives.
        options: Keyword arguments of `DistributedDataParallel`.
    """

    name = "ddp"

    def __init__(self, device: torch.device, **options: Any) -> None:
        self.device = device
        self.options = options
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.training_step: Callable[..., Any]
        self._ddp: DistributedDataParallel | None = None

    def setup(self, module: nn.Module, *, training: bool) -> None:
        """Move the module to the device; when `training`, wrap it, which broadcasts rank 0's weights."""
        if self.device.type != "cpu":
            module.to(self.device)
        if training and any(parameter.requires_grad for parameter in module.parameters()):
            ids = [self.device.index] if self.device.type == "cuda" else None
            self._ddp = DistributedDataParallel(_TrainingStep(module), device_ids=ids, **self.options)
            self.training_step = self._ddp

    def sync_gradients(self, on: bool) -> None:
        """Say whether the next backward reduces; sets what `DistributedDataParallel.no_sync` does."""
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = on

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients in one flat all-reduce a dtype; a gradient that no rank has stays None."""
        found = [parameter for parameter in parameters if parameter.requires_grad]
        present = torch.tensor([float(item.grad is not None) for item in found], device=self.device)
        dist.all_reduce(present)
        kept = [item for item, ranks in zip(found, present.tolist(), strict=True) if ranks > 0]
        for dtype in dict.fromkeys(item.dtype for item in kept):
            group = [item for item in kept if item.dtype is dtype]
            parts = [torch.zeros_like(item) if item.grad is None else item.grad for item in group]
            flat = torch.cat([part.reshape(-1) for part in parts])
            dist.all_reduce(flat)
            flat /= self.world_size
            for item, mean in zip(group, flat.split([item.numel() for item in group]), strict=True):
                item.grad = (
                    mean.view_as(item).clone() if item.grad is None else item.grad.copy_(mean.view_as(item))
                )

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, by rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Return rank 0's `value`."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def counts(self, number: int) -> list[int]:
        """Return every rank's `number`, by rank."""
        numbers = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        dist.all_gather_into_tensor(numbers, torch.tensor([number], device=self.device))
        return list(map(int, numbers.tolist()))

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.device.type == "cuda":
            dist.barrier(device_ids=[self.device.index])
        else:
            dist.barrier()

    def teardown(self) -> None:
        """Drop the wrapper, so that its buckets and hooks go."""
        self._ddp = None
