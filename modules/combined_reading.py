"""Several loaders that are read together, as one rank reads them: each member is shared by itself.

The number of batches and of samples of each rank follow from the members' where those are known. To go on in
the middle of an epoch, each member's place, its passes and the random states in which its present pass began
are kept. A member that some rank gets nothing of, and one whose parts do not fit the mode, is a `ValueError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from modules.combined import (
    CombinedLoader,
    Strand,
    combined_length,
    member_names,
    read_together,
    unflatten,
)
from modules.combined_plan import CombinedPlan
from modules.loader import Mark, RankLoader
from modules.order import BatchPlan


class CombinedRankLoader:
    """One rank's view of several loaders; it has what a `RankLoader` has.

    Args:
        source: The loaders and the mode, which is not sequential.
        members: A view of each, in order.
        world_size: Ranks that share the data.

    Attributes:
        num_batches: Batches in an epoch, of the rank that has most; None when that is not known.
        plan: How many samples each rank has in each batch, of all members together; None when ranks cannot
            know it in advance.
        exact: `num_batches` can be trusted.
        kept: Always False: each member knows of its own worker processes.

    Raises:
        ValueError: A rank gets no batch of a member.
    """

    def __init__(self, source: CombinedLoader, members: Sequence[RankLoader], world_size: int) -> None:
        self.source = source
        self.members = list(members)
        self.plan: BatchPlan | None = None
        self.num_batches: int | None = None
        self.kept = False
        self._world_size = world_size
        self._names = member_names(source.iterables)
        self._strands: list[_RankStrand] = []
        self._take_plan()
        alike = world_size == 1 or self.plan is not None or all(item.plan is None for item in self.members)
        self.exact = alike and all(item.exact for item in self.members)

    @property
    def fingerprint(self) -> str:
        """What identifies the data cheaply: mode and members; empty when a member has nothing to say."""
        parts = [member.fingerprint for member in self.members]
        return f"{self.source.mode}({', '.join(parts)})" if all(parts) else ""

    def start_epoch(self, epoch: int) -> None:
        """Tell all members which epoch the next iteration reads."""
        for member in self.members:
            member.start_epoch(epoch)
        self._take_plan()

    def _take_plan(self) -> None:
        plans = [member.plan for member in self.members if member.plan is not None]
        self.plan = None
        if plans and len(plans) == len(self.members):
            for name, plan in zip(self._names, plans, strict=True):
                lacking = [rank for rank in range(self._world_size) if not plan.batches(rank)]
                if lacking:
                    raise ValueError(
                        f"The loader at {name or 'the top'} has no batch for ranks {lacking} of "
                        f"{self._world_size}, and every batch needs one of it. Give it more data, or use "
                        "fewer ranks."
                    )
            self.plan = CombinedPlan(members=tuple(plans), mode=self.source.mode, world_size=self._world_size)
            self.num_batches = self.plan.num_batches
        else:
            self.num_batches = combined_length(
                [member.num_batches for member in self.members], self.source.mode
            )

    def iterate(
        self, skip: int = 0, own: Mapping[str, Any] | None = None, first: Mark | None = None
    ) -> Iterator[Any]:
        """Return an iterator over this rank's batches of the epoch after the first `skip`.

        Args:
            skip: Batches that were used.
            own: With `skip`, what `own_state` returned after them.
            first: Not needed here: `own` has it for each member.

        Raises:
            ValueError: `own` is not that of as many loaders.
        """
        self._strands = [
            _RankStrand(member, name) for member, name in zip(self.members, self._names, strict=True)
        ]
        if not skip:
            for strand in self._strands:
                strand.begin()
            return self._batches()
        own = own or {}
        states = own.get("members", [])
        if len(states) != len(self._strands):
            raise ValueError(
                f"Reading goes on after {skip} batches of {len(states) or 'one'} loaders, and "
                f"{len(self._strands)} were given. Give the same loaders, or begin at the start of an epoch."
            )
        for strand, state in zip(self._strands, states, strict=True):
            strand.resume(state, again=self.source.mode != "max_size")
        self._set_generators(own["generators"])
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        tree = self.source.iterables
        return (unflatten(tree, row) for row in read_together(self._strands, self.source.mode))

    def parts(self, batch: Any) -> list[Any]:
        """Return the members' batches that `batch` was made of; None stands for a member that has ended."""
        return [_at(batch, path) for path in _paths(self.source.iterables)]

    @property
    def skips_quickly(self) -> bool:
        """Whether all members do."""
        return all(member.skips_quickly for member in self.members)

    def own_state(self) -> dict[str, Any]:
        """Return where each member stands, and what stateful ones say themselves."""
        if self._strands:
            members = [strand.state() for strand in self._strands]
        else:
            members = [{"own": member.own_state()} for member in self.members]
        return {"members": members, "generators": [item.get_state() for item in self.generators()]}

    def take_state(self, own: Mapping[str, Any]) -> None:
        """Give stateful members back what they said, before an epoch begins."""
        for member, state in zip(self.members, own.get("members", []), strict=False):
            member.take_state(state["own"])

    def generators(self) -> list[torch.Generator]:
        """Return the random generators of the user's own that reading draws from, each once."""
        found = {id(item): item for member in self.members for item in member.generators()}
        return list(found.values())

    def _set_generators(self, states: Sequence[Any]) -> None:
        for generator, state in zip(self.generators(), states, strict=False):
            generator.set_state(state)

    def close(self) -> None:
        """Let go of the members' iterators, and so of their worker processes."""
        self._strands = []


class _RankStrand(Strand):
    """A member's pass, with the random states in which it began."""

    def __init__(self, loader: RankLoader, name: str) -> None:
        super().__init__(loader.iterate, name)
        self.loader = loader
        self._begun: Mark | None = None
        self._first: Mark | None = None
        self._kept = False

    def begin(self) -> None:
        """Begin a pass."""
        self._begun, self._first, self._kept = self.loader.mark(), None, self.loader.kept
        super().begin()

    def take(self) -> Any:
        """Return the next batch of the pass, or `NOTHING`."""
        if self._first is None:
            self._first = self.loader.mark()
        return super().take()

    def state(self) -> dict[str, Any]:
        """Return all that `resume` needs, as plain values and tensors."""
        return {
            "batches": self.batches,
            "passes": self.passes,
            "begun": self._begun,
            "first": self._first,
            "kept": self._kept,
            "own": self.loader.own_state(),
        }

    def resume(self, state: Mapping[str, Any], *, again: bool) -> None:
        """Stand where the strand stood that returned `state`.

        Args:
            state: What `state` returned.
            again: A pass that has ended is followed by another.
        """
        self.batches, self.passes = state["batches"], state["passes"]
        self._begun, self._first, self._kept = state["begun"], state["first"], state["kept"]
        if self.passes and not again:
            return
        self.loader.put_back(self._begun)
        self.loader.kept = self._kept
        self.iterator = self.loader.iterate(self.batches, state["own"], self._first)


Reader = RankLoader | CombinedRankLoader
"""What the loops read: one rank's view of one loader or of several."""


def _paths(tree: Any) -> list[tuple[Any, ...]]:
    """Return the keys that lead to each leaf of `tree`."""
    if isinstance(tree, dict):
        branches = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        branches = list(enumerate(tree))
    else:
        return [()]
    return [(key, *rest) for key, branch in branches for rest in _paths(branch)]


def _at(tree: Any, path: Sequence[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
