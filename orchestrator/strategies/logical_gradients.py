"""The gradients of the logical ranks that a process hosts, on their way into the reduction tree and back.

A logical rank's gradients are copied into one vector a type, which the tree adds up; the mean comes back as
views of one such vector, so nothing is copied then. A parameter without a gradient counts as zero where
another logical rank has one, and keeps none where nobody has. Sparse gradients are a `MisconfigurationError`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cluster.layout import Layout
from cluster.tree_reduce import TreePlan, TreeSum
from orchestrator.errors import MisconfigurationError


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that need gradients, in the module's order."""
    return [item for item in module.parameters() if item.requires_grad]


class LogicalGradients:
    """The gradients of the hosted logical ranks, on their way into the tree.

    Args:
        module: Whose parameters.
        layout: Which process hosts which logical ranks.
        process: This process's place in it.
        device: Where the module is.
    """

    def __init__(self, module: nn.Module, layout: Layout, process: int, device: torch.device) -> None:
        self.parameters = trainable(module)
        plan = TreePlan.of(layout)
        self._logical_ranks = plan.logical_ranks
        self._places: list[list[int]] = []  # of parameters, by type
        self._trees: list[TreeSum] = []
        self._views: dict[int, list[Tensor]] = {}
        self._seen = [0.0] * len(self.parameters)
        for dtype in dict.fromkeys(item.dtype for item in self.parameters):
            places = [place for place, item in enumerate(self.parameters) if item.dtype is dtype]
            size = sum(self.parameters[place].numel() for place in places)
            self._places.append(places)
            self._trees.append(TreeSum(plan, process, size, dtype=dtype, device=device))

    def take(self, rank: int) -> None:
        """Take a logical rank's gradients from the parameters, which have none afterwards."""
        for places, tree in zip(self._places, self._trees, strict=True):
            vector = tree.vector()
            into, gradients, missing = [], [], []
            for place, view in zip(places, self._views_of(places, vector), strict=True):
                gradient = self.parameters[place].grad
                if gradient is None:
                    missing.append(view)
                    continue
                if gradient.layout is not torch.strided:
                    raise MisconfigurationError(
                        "A parameter has a sparse gradient, which strategy='elastic' does not reduce. Use "
                        "sparse=False in the embedding."
                    )
                self._seen[place] = 1.0
                into.append(view)
                gradients.append(gradient)
            if into:
                torch._foreach_copy_(into, gradients)
            if missing:
                torch._foreach_zero_(missing)
            tree.add(rank, vector)
        for item in self.parameters:
            item.grad = None

    def present(self) -> list[float]:
        """Return for each parameter whether any logical rank here had a gradient, and begin to look anew."""
        seen, self._seen = self._seen, [0.0] * len(self.parameters)
        return seen

    def finish(self, present: list[bool]) -> None:
        """Give each parameter that has a gradient anywhere the mean over all logical ranks. Communicates."""
        for places, tree in zip(self._places, self._trees, strict=True):
            mean = tree.finish(float(self._logical_ranks))
            for place, view in zip(places, self._views_of(places, mean), strict=True):
                self.parameters[place].grad = view if present[place] else None

    def _views_of(self, places: list[int], vector: Tensor) -> list[Tensor]:
        """Return the part of a vector that is each parameter's, laid out as the parameter is."""
        address = vector.data_ptr()
        if address not in self._views or not places:
            parts = vector.split([self.parameters[place].numel() for place in places])
            self._views[address] = [
                _shaped(part, self.parameters[place]) for place, part in zip(places, parts, strict=True)
            ]
        return self._views[address]


def _shaped(part: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return a view of numbers in the shape of a parameter, and in its memory format where it is dense."""
    for memory_format in (torch.channels_last, torch.channels_last_3d):
        dims = 4 if memory_format is torch.channels_last else 5
        if parameter.dim() == dims and parameter.is_contiguous(memory_format=memory_format):
            return part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
    return part.view(parameter.shape)
