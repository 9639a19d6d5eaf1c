"""Copies of what a rank alone knows outlive it, at another rank."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import pytest

from cluster.errors import PeerLost
from cluster.snapshots import Snapshots, holders

Ring = list[Snapshots]


def begin(ring: Ring, generation: int = 0) -> None:
    members = [end.address for end in ring]
    for rank, end in enumerate(ring):
        end.connect(generation, rank, members)


def together(ring: Ring, number: int, *, without: int = -1) -> list[BaseException | None]:
    """Let all ranks hand over at once; return what each raised."""
    raised: list[BaseException | None] = [None] * len(ring)

    def hand_over(rank: int) -> None:
        try:
            ring[rank].hand_over(number, b"%d of %d" % (number, rank))
        except PeerLost as error:
            raised[rank] = error

    threads = [
        threading.Thread(target=hand_over, args=(rank,)) for rank in range(len(ring)) if rank != without
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return raised


@pytest.fixture
def ring() -> Iterator[Ring]:
    token = secrets.token_bytes(32)
    ends = [Snapshots("127.0.0.1", f"node {rank}", token) for rank in range(3)]
    begin(ends)
    yield ends
    for end in ends:
        end.close()


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("abc", [1, 2, 0]),
        ("aabb", [2, 3, 0, 1]),
        ("abb", [1, 0, 0]),
        ("aab", [2, 2, 0]),
        ("aaa", [1, 2, 0]),
        ("a", [0]),
    ],
)
def test_the_holder_is_on_another_node(nodes: str, expected: list[int]) -> None:
    """A node that is lost takes no copy of its own ranks along, where there is another node."""
    assert holders(list(nodes)) == expected


def test_the_last_two_copies_are_held(ring: Ring) -> None:
    """Whoever passes a step holds the copies of that step and of the one before."""
    for number in range(1, 4):
        assert together(ring, number) == [None] * 3
    assert [end.held() for end in ring] == [
        {rank: {2: b"2 of %d" % rank, 3: b"3 of %d" % rank}} for rank in (2, 0, 1)
    ]


def test_a_step_is_not_passed_without_the_copy(ring: Ring) -> None:
    """The holder of a rank that ends before it has sent its copy cannot go on; the others can."""
    together(ring, 1)
    ring[2].close()
    raised = together(ring, 2, without=2)
    assert isinstance(raised[0], PeerLost)  # it holds rank 2's
    assert ring[0].held()[2] == {1: b"1 of 2"}


def test_hanging_up_frees_those_who_wait(ring: Ring) -> None:
    """A wait for a peer that says nothing ends at once when this rank is told to leave the generation."""
    timer = threading.Timer(0.2, ring[0].hang_up)
    timer.start()
    with pytest.raises(PeerLost):
        ring[0].hand_over(1, b"")


def test_copies_outlive_the_generation(ring: Ring) -> None:
    """The next generation of ranks still holds what the one before has sent, until that is replaced."""
    together(ring, 1)
    ring[2].close()
    ring[2] = Snapshots("127.0.0.1", "node 3", ring[0]._token)
    begin(ring, generation=1)
    assert ring[0].held() == {2: {1: b"1 of 2"}}
    assert together(ring, 2) == [None] * 3
    assert ring[0].held()[2] == {1: b"1 of 2", 2: b"2 of 2"}


def test_strangers_are_not_heard(ring: Ring) -> None:
    """Copies are taken from those who know the group's token."""
    stranger = Snapshots("127.0.0.1", "node 4", secrets.token_bytes(32))
    members = [end.address for end in ring]
    stranger.connect(0, 2, members)
    stranger._line.sendall(b"\x01" + b"\0" * 7 + b"\x01" + b"\0" * 7 + b"x")  # type: ignore[union-attr]
    together(ring, 1)
    assert ring[0].held() == {2: {1: b"1 of 2"}}
    stranger.close()


def test_copies_larger_than_what_the_lines_take_at_once_go_through(ring: Ring) -> None:
    """All send at the same time, and none waits for the other to read."""
    data = secrets.token_bytes(20_000_000)
    threads = [threading.Thread(target=end.hand_over, args=(1, data)) for end in ring]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert [end.held() for end in ring] == [{rank: {1: data}} for rank in (2, 0, 1)]


def test_what_a_lost_rank_has_sent_is_held_though_nobody_waited_for_it(ring: Ring) -> None:
    """A rank may be lost when its holder has not come to the same step yet."""
    together(ring, 1)
    line = ring[2]._line
    assert line is not None
    line.sendall(b"\x02" + b"\0" * 7 + b"\x03" + b"\0" * 7 + b"new")
    ring[2].close()
    ring[0].hang_up()
    ring[2] = Snapshots("127.0.0.1", "node 3", ring[0]._token)
    begin(ring, generation=1)
    assert ring[0].held() == {2: {1: b"1 of 2", 2: b"new"}}
