"""Layouts of logical ranks, and the tree that sums over them: for any numbers, and any history."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.errors import SpecError
from cluster.layout import Layout, host_of, relay, shares_for, spread, subtrees
from cluster.tree_reduce import TreePlan, TreeSum, merged, tree_sum


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[Layout]]:
    """V, and the layouts of a run that loses and gains processes, each with the one before."""
    total = draw(st.integers(1, 24))
    layouts = [spread(total, draw(st.integers(1, total)))]
    for _ in range(draw(st.integers(0, 5))):
        stays = draw(st.lists(st.booleans(), min_size=len(layouts[-1]), max_size=len(layouts[-1])))
        left: list[tuple[int, ...]] = [
            own for own, stay in zip(layouts[-1], stays, strict=True) if stay
        ] or list(layouts[-1][:1])
        comes = draw(st.integers(0, total - len(left)))
        layouts.append(relay([*left, *[()] * comes], total))
    return total, layouts


@given(histories())
def test_every_logical_rank_is_hosted_once(history: tuple[int, list[Layout]]) -> None:
    """Through any history each logical rank is hosted once, shares differ by one at most, none is empty, and
    the first process hosts logical rank 0.
    """
    total, layouts = history
    for layout in layouts:
        assert sorted(itertools.chain(*layout)) == list(range(total))
        assert all(list(own) == sorted(own) for own in layout)
        assert min(map(len, layout)) >= 1 and max(map(len, layout)) - min(map(len, layout)) <= 1
        assert layout[0][0] == 0
        assert [rank in layout[host] for rank, host in enumerate(host_of(layout))] == [True] * total


@given(st.integers(1, 24), st.data())
def test_as_few_logical_ranks_move_as_can(total: int, data: st.DataObject) -> None:
    """Only orphans and what is above a share change their host; and one more where a first process that has
    its share already must host logical rank 0.
    """
    before = spread(total, data.draw(st.integers(1, total)))
    left = list(before[data.draw(st.integers(0, len(before) - 1)) :])
    comes = data.draw(st.integers(0, total - len(left)))
    after = relay([*left, *[()] * comes], total)
    moved = sum(len(set(new) - set(old)) for new, old in zip(after, [*left, *[()] * comes], strict=True))
    orphans = total - sum(map(len, left))
    surplus = sum(max(0, len(old) - len(new)) for new, old in zip(after, left, strict=False))
    makes_room = 0 not in left[0] and len(left[0]) >= len(after[0])
    assert moved == orphans + surplus + makes_room


@given(st.lists(st.floats(0.05, 20.0), min_size=1, max_size=6), st.integers(0, 30))
def test_shares_end_soonest(speeds: list[float], more: int) -> None:
    """No move of one logical rank from the slowest process to another makes the step shorter."""
    shares = shares_for(speeds, len(speeds) + more)
    assert sum(shares) == len(speeds) + more and min(shares) >= 1
    times = [share / speed for share, speed in zip(shares, speeds, strict=True)]
    slowest = times.index(max(times))
    if shares[slowest] > 1:
        others = [(share + 1) / speed for share, speed in zip(shares, speeds, strict=True)]
        assert all(other >= max(times) * (1 - 1e-12) for i, other in enumerate(others) if i != slowest)


def numbers(total: int, size: int, seed: int) -> list[Tensor]:
    """Vectors whose sum depends on the order."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-6, 7, (total, size), generator=generator)
    return list(torch.randn(total, size, generator=generator) * scales)


@settings(max_examples=60)
@given(histories(), st.integers(1, 7), st.integers(0, 1000))
def test_the_sum_is_the_same_to_the_bit(history: tuple[int, list[Layout]], size: int, seed: int) -> None:
    """However logical ranks are hosted, partial sums in the tree's order give the bits of one process."""
    total, layouts = history
    vectors = numbers(total, size, seed)
    expected = tree_sum(vectors)
    for layout in layouts:
        plan = TreePlan.of(layout)
        rows = []
        for process, hosted in enumerate(layout):
            own = TreeSum(plan, process, size, dtype=torch.float32, device=torch.device("cpu"))
            for rank in hosted:
                own.add(rank, own.vector().copy_(vectors[rank]))
                assert len(own.partials()) <= total.bit_length() + 1
            assert len(own.partials()) == plan.partials[process] == len(subtrees(hosted, total))
            rows += [item.clone() for item in own.partials()]
        assert torch.equal(merged(torch.stack(rows), plan), expected)


def test_the_order_matters() -> None:
    """Another order gives other bits for the vectors of these tests, so that equality says something."""
    vectors = numbers(8, 64, 1)
    assert not torch.equal(tree_sum(vectors), torch.stack(vectors).flip(0).cumsum(0)[-1])


@pytest.mark.parametrize("processes", [0, 5])
def test_too_many_or_no_processes_are_refused(processes: int) -> None:
    """There is at least one process, and none without a logical rank."""
    with pytest.raises(SpecError, match=f"{processes} processes for 4 logical ranks"):
        spread(4, processes)


def test_shares_must_add_up() -> None:
    """Shares that do not host every logical rank once are refused."""
    with pytest.raises(SpecError, match=r"shares=\[1, 1\] of 4"):
        relay([(0, 1), (2, 3)], 4, [1, 1])
