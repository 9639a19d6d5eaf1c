"""The buffers of a module that logical ranks train: alike when a step begins, logical rank 0's when it ends.

Buffers that have not changed are neither copied nor sent; whether one has is told by its version, but for
those of normalisation layers, whose kernels do not tell. A buffer that is replaced, rather than changed in
place, is not noticed.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class LogicalBuffers:
    """The module's buffers: alike for all logical ranks when a step begins, logical rank 0's at its end.

    Args:
        module: Whose.
    """

    def __init__(self, module: nn.Module) -> None:
        self.all = list(module.buffers())
        norms = {
            id(buffer)
            for layer in module.modules()
            if isinstance(layer, _NormBase)  # its kernels change statistics without telling
            for buffer in layer.buffers(recurse=False)
        }
        self._quiet = [id(item) in norms for item in self.all]
        self._versions = [-1] * len(self.all)
        self._begun: list[Tensor | None] = [None] * len(self.all)
        self._kept: list[Tensor | None] = []
        self._told: list[float] = []

    def open_window(self, *, keeps: bool) -> None:
        """Note where a step begins, and keep what it begins with where that will be put back."""
        for place, item in enumerate(self.all):
            if keeps and (self._quiet[place] or item._version != self._versions[place]):
                begun = self._begun[place]
                if begun is None:
                    self._begun[place] = item.detach().clone()
                else:
                    begun.copy_(item.detach())
            self._versions[place] = item._version
        self._kept, self._told = [], []

    def put_back(self) -> None:
        """Make the buffers what they were when the step began."""
        with torch.no_grad():
            for place, item in enumerate(self.all):
                begun = self._begun[place]
                if begun is not None and (self._quiet[place] or item._version != self._versions[place]):
                    item.copy_(begun)
                    self._versions[place] = item._version

    def changed(self) -> list[float]:
        """Return for each buffer whether logical rank 0 may have changed it in this step."""
        return self._told or self._look()

    def _look(self) -> list[float]:
        return [
            float(quiet or item._version != version)
            for quiet, item, version in zip(self._quiet, self.all, self._versions, strict=True)
        ]

    def keep(self) -> None:
        """Keep what logical rank 0 has made of the buffers, while others run."""
        self._told = self._look()
        self._kept = [
            item.detach().clone() if told else None for item, told in zip(self.all, self._told, strict=True)
        ]

    def take_kept(self) -> None:
        """Make the buffers logical rank 0's again, after the others of its process."""
        self.put_back()
        with torch.no_grad():
            for item, kept in zip(self.all, self._kept, strict=True):
                if kept is not None:
                    item.copy_(kept)

    def share(self, changed: list[bool]) -> None:
        """Make the buffers that have changed those of the first process. Communicates."""
        chosen = [item for item, has in zip(self.all, changed, strict=True) if has and item.numel()]
        first = dist.get_rank() == 0
        with torch.no_grad():
            if not first:
                self.put_back()
            for dtype in dict.fromkeys(item.dtype for item in chosen):
                group = [item for item in chosen if item.dtype is dtype]
                flat = torch.cat([item.detach().reshape(-1) for item in group])
                dist.broadcast(flat.view(torch.uint8) if dtype is torch.bool else flat, src=0)
                if not first:
                    for item, part in zip(group, flat.split([item.numel() for item in group]), strict=True):
                        item.copy_(part.view_as(item))

    def forget(self) -> None:
        """Drop the step that was begun."""
        self._kept, self._told = [], []
