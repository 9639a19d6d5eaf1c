"""Sums one vector per logical rank to the same bits, however many processes host the logical ranks.

Addition of floating-point numbers depends on the order, so the order is fixed: a binary tree over the logical
ranks 0 to V - 1, of the next power of two, whose missing leaves are passed over. Each process sums the whole
subtrees that it hosts as its vectors come in, so it holds log2(V) + 1 vectors at most. Then each process gets
its chunk of everybody's partial sums, finishes the tree for that chunk, and all gather the chunks: the bytes
of an all-reduce where each process hosts one subtree. `TreePlan` is pure; `TreeSum` communicates when it
`finish`es. A peer that is gone makes that raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.layout import Layout, grow, subtrees

# Named anew in torch 2.13; builds before it know the older name alone.
_gather_chunks: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_PIECES = 4
_LEAST_PIECE = 1 << 16  # numbers
_BACK = 1 << 20  # tags of what comes back, above those of partial sums


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePlan:
    """What each process sends, and in which order what it gets is added.

    Attributes:
        logical_ranks: V.
        layout: Which process hosts which logical ranks.
        partials: How many partial sums each process has.
        rows: The place, among all partial sums by process, of each, in the order of the tree.
        merges: Pairs (into, from) of such places, in order: the second is added to the first. The first of
            them all ends as the sum.
    """

    logical_ranks: int
    layout: Layout
    partials: tuple[int, ...]
    rows: tuple[int, ...]
    merges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, layout: Layout) -> TreePlan:
        """Return the plan of a layout."""
        total = sum(map(len, layout))
        nodes = [subtrees(hosted, total) for hosted in layout]
        flat = [node for own in nodes for node in own]
        order = sorted(range(len(flat)), key=lambda place: flat[place])
        grown: list[tuple[int, int]] = []
        places: list[int] = []
        merges = []
        for place in order:
            grown.append(flat[place])
            places.append(place)
            for into in grow(grown, total):
                merges.append((places[into], places.pop()))
        return cls(
            logical_ranks=total,
            layout=layout,
            partials=tuple(map(len, nodes)),
            rows=tuple(order),
            merges=tuple(merges),
        )


class TreeSum:
    """The sum of one vector per logical rank, step after step; vectors are reused.

    Args:
        plan: Of the present layout.
        process: This process's place in it.
        size: Numbers in a vector.
        dtype: Their type.
        device: Where they are.
        group: The process group of the layout's processes, in its order; None for the default one, or for
            none where there is one process.
    """

    def __init__(
        self,
        plan: TreePlan,
        process: int,
        size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        group: Any = None,
    ) -> None:
        self._plan = plan
        self._process = process
        self._size = size
        self._processes = len(plan.layout)
        self._chunk = -(-size // self._processes)
        self._like: dict[str, Any] = {"dtype": dtype, "device": device}
        self._group = group
        self._free: list[Tensor] = []
        self._nodes: list[tuple[int, int]] = []
        self._sums: list[Tensor] = []
        self._rows: Tensor | None = None

    def vector(self) -> Tensor:
        """Return a vector to be filled, of shape (size,); its content is undefined."""
        whole = self._free.pop() if self._free else torch.zeros(self._chunk * self._processes, **self._like)
        return whole[: self._size]

    def add(self, rank: int, vector: Tensor) -> None:
        """Add the vector of a logical rank, which `vector` has given; ranks come in ascending order."""
        self._sums.append(vector)
        self._nodes.append((rank, 1))
        for into in grow(self._nodes, self._plan.logical_ranks):
            right = self._sums.pop()
            self._sums[into].add_(right)
            self._give_back(right)

    def partials(self) -> list[Tensor]:
        """Return the sums of this process's whole subtrees, ascending."""
        return list(self._sums)

    def forget(self) -> None:
        """Drop what was added."""
        self._free += [self._whole(vector) for vector in self._sums]
        self._sums, self._nodes = [], []

    def finish(self, divisor: float) -> Tensor:
        """Return the sum over all logical ranks, divided by `divisor`, of shape (size,). Communicates.

        It is valid until the vectors of the next step come in. Every logical rank of this process must have
        been added.
        """
        sums = [self._whole(item) for item in self.partials()]
        total = sums[0]
        self.forget()
        if self._processes == 1:
            return total.div_(divisor)[: self._size]
        if self._rows is None:
            self._rows = torch.empty(sum(self._plan.partials), self._chunk, **self._like)
        if total.device.type == "cpu":
            self._finish_by_messages(sums, self._rows, divisor)
        else:
            self._finish_by_collectives(sums, self._rows, divisor)
        return total[: self._size]

    def _finish_by_messages(self, sums: list[Tensor], rows: Tensor, divisor: float) -> None:
        """Fill the first of `sums` with the mean, piece by piece: while one is added up others are under way.

        What comes back into a part of that vector has needed what was sent from there, so it cannot come too
        early.
        """
        total, plan, chunk, group = sums[0], self._plan, self._chunk, self._group
        others = [process for process in range(self._processes) if process != self._process]
        firsts = [sum(plan.partials[:process]) for process in range(self._processes)]
        pieces = min(_PIECES, max(1, chunk // _LEAST_PIECE))
        cuts = [chunk * piece // pieces for piece in range(pieces + 1)]
        own = self._process * chunk
        arriving: list[list[Any]] = []
        works: list[Any] = []
        for piece, (begin, end) in enumerate(pairwise(cuts)):
            arriving.append(
                [
                    dist.irecv(
                        rows[firsts[process] + place, begin:end], process, group, place * pieces + piece
                    )
                    for process in others
                    for place in range(plan.partials[process])
                ]
            )
            works += [
                dist.irecv(
                    total[process * chunk + begin : process * chunk + end], process, group, _BACK + piece
                )
                for process in others
            ]
        for piece, (begin, end) in enumerate(pairwise(cuts)):
            works += [
                dist.isend(item[process * chunk + begin : process * chunk + end], process, group, tag)
                for process in others
                for tag, item in zip(range(piece, len(sums) * pieces, pieces), sums, strict=True)
            ]
        for piece, (begin, end) in enumerate(pairwise(cuts)):
            for work in arriving[piece]:
                work.wait()
            parts = [row[begin:end] for row in rows]
            for place, item in enumerate(sums):
                parts[firsts[self._process] + place] = item[own + begin : own + end]
            part = merged(parts, plan).div_(divisor)
            mine = total[own + begin : own + end]
            if part.data_ptr() != mine.data_ptr():
                mine.copy_(part)
            works += [dist.isend(mine, process, group, _BACK + piece) for process in others]
        for work in works:
            work.wait()

    def _finish_by_collectives(self, sums: list[Tensor], rows: Tensor, divisor: float) -> None:
        """Fill the first of `sums` with the mean."""
        chunk, counts, count = self._chunk, self._plan.partials, len(sums)
        sent = sums[0]
        if count > 1:
            sent = torch.stack([item.view(self._processes, chunk) for item in sums], dim=1).view(-1)
        dist.all_to_all_single(
            rows.view(-1),
            sent,
            output_split_sizes=[other * chunk for other in counts],
            input_split_sizes=[count * chunk] * self._processes,
            group=self._group,
        )
        _gather_chunks(sums[0], merged(rows, self._plan).div_(divisor), group=self._group)

    def _give_back(self, vector: Tensor) -> None:
        self._free.append(self._whole(vector))

    def _whole(self, vector: Tensor) -> Tensor:
        """Return the padded vector that this one is the front of."""
        return vector if vector._base is None else vector._base


def merged(rows: Tensor | Sequence[Tensor], plan: TreePlan) -> Tensor:
    """Add the partial sums of all processes, by process, of shape (partial sums, size), in the order of the
    tree and in place; return the row that is their sum.
    """
    for into, other in plan.merges:
        rows[into].add_(rows[other])
    return rows[plan.rows[0]]


def tree_sum(vectors: Sequence[Tensor]) -> Tensor:
    """Return the sum of vectors in the order of the tree, for one process that has all of them.

    >>> tree_sum([torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0])])
    tensor([7.])
    """
    found = TreeSum(
        TreePlan.of((tuple(range(len(vectors))),)),
        0,
        vectors[0].numel(),
        dtype=vectors[0].dtype,
        device=vectors[0].device,
    )
    for rank, vector in enumerate(vectors):
        found.add(rank, found.vector().copy_(vector))
    return found.finish(1.0)
