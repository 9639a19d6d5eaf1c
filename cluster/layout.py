"""Which process hosts which logical ranks. Pure: the same numbers always give the same layout.

A layout names, for each process in order, the logical ranks that it hosts, ascending. Each of the V logical
ranks is hosted exactly once; every process hosts at least one; the first process hosts logical rank 0, whose
buffers and unreduced metrics are everybody's. When processes come or go, as few logical ranks move as the new
shares allow, and those that stay or come are chosen so that a process hosts whole subtrees of the reduction
tree (`cluster.tree_reduce`), which makes its messages few. More processes than logical ranks is a
`SpecError`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import SpecError

Layout = tuple[tuple[int, ...], ...]
"""For each process, in order: the logical ranks that it hosts, ascending."""


def spread(logical_ranks: int, processes: int) -> Layout:
    """Return the layout of a run that begins: runs of neighbours, of sizes that differ by one at most.

    >>> spread(8, 3)
    ((0, 1, 2), (3, 4, 5), (6, 7))
    """
    return relay([()] * processes, logical_ranks)


def relay(before: Sequence[Sequence[int]], logical_ranks: int, shares: Sequence[int] | None = None) -> Layout:
    """Return the layout that follows when processes have come or gone, with the fewest moves.

    Args:
        before: What each process that is there now hosts, in order; nothing for one that has come. Logical
            ranks that nobody names were hosted by processes that are gone.
        logical_ranks: V; all of 0 to V - 1 will be hosted.
        shares: How many each process is to host; None for numbers that differ by one at most.

    Raises:
        SpecError: There are no processes, more than logical ranks, or the shares do not add up.

    >>> relay([(0, 1, 2), (6, 7)], 8)
    ((0, 1, 2, 3), (4, 5, 6, 7))
    """
    processes = len(before)
    if not 1 <= processes <= logical_ranks:
        raise SpecError(
            f"{processes} processes for {logical_ranks} logical ranks. Use at least one process, and at most "
            "as many as there are logical ranks."
        )
    wanted = _even_shares(before, logical_ranks) if shares is None else list(shares)
    if len(wanted) != processes or sum(wanted) != logical_ranks or min(wanted) < 1:
        raise SpecError(
            f"shares={wanted!r} of {logical_ranks} logical ranks for {processes} processes. Give each "
            "process a whole number of at least 1, which add up."
        )
    kept = [
        _keep([rank for rank in hosted if rank or not process], wanted[process], logical_ranks)
        for process, hosted in enumerate(before)
    ]
    if 0 not in kept[0]:
        kept[0] = sorted([0, *kept[0][: wanted[0] - 1]])
    orphans = sorted(set(range(logical_ranks)) - {rank for hosted in kept for rank in hosted})
    for process, hosted in enumerate(kept):
        while len(hosted) < wanted[process]:
            nearest = _nearest(orphans, hosted)
            orphans.remove(nearest)
            hosted.append(nearest)
        hosted.sort()
    return tuple(tuple(hosted) for hosted in kept)


def shares_for(speeds: Sequence[float], logical_ranks: int) -> list[int]:
    """Return how many logical ranks each process hosts so that the slowest is done soonest; at least one.

    One after the other goes to the process that would be done with it first; for equal jobs no other numbers
    end sooner.

    Args:
        speeds: Logical ranks that each process does in a unit of time, above 0.
        logical_ranks: V, at least one for each process.

    >>> shares_for([1.0, 1.0, 0.5], 10)
    [4, 4, 2]
    """
    shares = [1] * len(speeds)
    for _ in range(logical_ranks - len(speeds)):
        soonest = min(
            range(len(speeds)), key=lambda process: ((shares[process] + 1) / speeds[process], process)
        )
        shares[soonest] += 1
    return shares


def host_of(layout: Layout) -> list[int]:
    """Return the process of each logical rank, by its place in the layout.

    >>> host_of(((0, 2), (1,)))
    [0, 1, 0]
    """
    hosts = {rank: process for process, hosted in enumerate(layout) for rank in hosted}
    return [hosts[rank] for rank in range(len(hosts))]


def subtrees(hosted: Sequence[int], logical_ranks: int) -> list[tuple[int, int]]:
    """Return the largest whole subtrees of the reduction tree among the hosted logical ranks.

    The tree is that over the next power of two, whose leaves from V on are not there.

    Returns:
        (first logical rank, width) of each, ascending; the last may reach beyond V.

    >>> subtrees([0, 1, 2, 3, 5], 6)
    [(0, 4), (5, 1)]
    >>> subtrees([4, 5], 6)
    [(4, 4)]
    """
    found: list[tuple[int, int]] = []
    for rank in sorted(hosted):
        found.append((rank, 1))
        grow(found, logical_ranks)
    return found


def grow(nodes: list[tuple[int, int]], logical_ranks: int) -> list[int]:
    """Join the last subtrees of a list as far as they are neighbours in the tree, in place.

    Returns:
        The place in the list, at each join, of the left part; the right part was behind it.
    """
    joins: list[int] = []
    while True:
        first, width = nodes[-1]
        if first % (2 * width) == 0:
            if first + width < logical_ranks or width >= logical_ranks:
                return joins
            nodes[-1] = (first, 2 * width)  # its sibling is not there
        elif len(nodes) > 1 and nodes[-2] == (first - width, width):
            nodes.pop()
            nodes[-1] = (first - width, 2 * width)
            joins.append(len(nodes) - 1)
        else:
            return joins


def _even_shares(before: Sequence[Sequence[int]], logical_ranks: int) -> list[int]:
    """Return shares that differ by one at most; those that host more now host the more then."""
    each, more = divmod(logical_ranks, len(before))
    order = sorted(range(len(before)), key=lambda process: (-len(before[process]), process))
    wanted = [each] * len(before)
    for process in order[:more]:
        wanted[process] += 1
    return wanted


def _keep(hosted: Sequence[int], share: int, logical_ranks: int) -> list[int]:
    """Return which logical ranks a process keeps: those at its ends go, so that the rest are few subtrees."""
    own = sorted(hosted)
    surplus = len(own) - share
    if surplus <= 0:
        return own
    cuts = [own[cut : cut + share] for cut in range(surplus + 1) if cut == 0 or own[0] != 0]
    return min(cuts, key=lambda rest: (len(subtrees(rest, logical_ranks)), rest))


def _nearest(orphans: Sequence[int], hosted: Sequence[int]) -> int:
    """Return the orphan that is closest in the tree to what a process hosts; the first where it has none."""
    if not hosted:
        return orphans[0]
    return min(orphans, key=lambda rank: (min((rank ^ other).bit_length() for other in hosted), rank))
