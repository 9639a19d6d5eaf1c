"""From many failures to one error: `failure`."""

from __future__ import annotations

import re
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import RemoteError, WorkerDied
from cluster.failure import Failure, _unpickle, choose_first, describe, describe_death, explain_death, rebuild
from cluster.ranks import Place, WorkerInfo, assign_ranks

WORKERS: list[WorkerInfo] = [
    info for _, info in assign_ranks([Place(node_id="n", node_ip="10.0.0.1", pid=p) for p in (10, 11, 12)])
]


class NeedsTwo(Exception):
    """An exception that pickle rebuilds with the wrong arguments, and that holds what cannot be pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.source = (number for number in (one, two))


def fail(
    error: BaseException, rank: int = 1, where: str | None = None, output: tuple[str, ...] = ()
) -> Failure:
    """Raise and describe an exception as a worker does."""
    try:
        raise error
    except BaseException as caught:
        return describe(caught, rank=rank, where=where, hidden=(), output=output)


def failure(rank: int, time_s: float, broken_link: bool) -> Failure:
    """A failure of which only the order matters."""
    return Failure(
        rank=rank,
        time_s=time_s,
        exception=None,
        type_name="E",
        message="",
        broken_link=broken_link,
        where=None,
        frames="",
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 100), st.booleans()), min_size=1))
def test_the_earliest_failure_that_is_no_broken_link_comes_first(
    drawn: list[tuple[int, float, bool]],
) -> None:
    """A lost connection is the first cause only if there is nothing else; else the earliest time wins."""
    failures = [failure(*each) for each in drawn]
    first = choose_first(failures)
    causes = [each for each in failures if not each.broken_link] or failures
    assert first in causes
    assert first.time_s == min(each.time_s for each in causes)


def test_an_exception_keeps_its_type_and_says_where_it_came_from() -> None:
    """The notes name rank, node, process, what was being done, the user's line, the last output and the
    others.
    """
    error = rebuild(fail(ValueError("boom"), where="epoch 3, step 41", output=("a", "b")), WORKERS, [])
    assert type(error) is ValueError
    assert str(error) == "boom"
    notes = "\n".join(error.__notes__)
    assert "Raised on rank 1 of 3 on node 10.0.0.1 (pid 11), epoch 3, step 41:" in notes
    assert "raise error" in notes
    assert "Last output of rank 1:\n  | a\n  | b" in notes
    assert "2 other ranks failed in consequence." in notes


def test_frames_of_the_machinery_are_left_out() -> None:
    """The report shows the user's frames, not this package's and not hidden packages'."""
    from cluster.serialization import load

    def users_function() -> None:
        load(b"not a pickle")

    try:
        users_function()
    except Exception as caught:
        shown = describe(caught, rank=0, where=None, hidden=(), output=()).frames
        hidden = describe(caught, rank=0, where=None, hidden=(__name__.partition(".")[0],), output=()).frames
    assert "users_function" in shown
    assert "serialization.py" not in shown
    assert "users_function" not in hidden
    assert "UnpicklingError" in hidden


def test_the_chain_of_causes_is_told() -> None:
    """What led to the exception stands before it."""
    try:
        raise KeyError("the cause")
    except KeyError as cause:
        error = RuntimeError("the effect")
        error.__cause__ = cause
    frames = fail(error).frames
    assert frames.index("the cause") < frames.index("which led to") < frames.index("the effect")


def test_an_exception_that_cannot_be_rebuilt_becomes_a_remote_error() -> None:
    """The text and the name of the class are kept."""
    error = rebuild(fail(NeedsTwo(1, 2)), WORKERS, [])
    assert isinstance(error, RemoteError)
    assert error.type_name.endswith("NeedsTwo")
    assert "NeedsTwo: 1 and 2" in str(error)


def test_a_death_names_the_worker_and_the_cause() -> None:
    """A WorkerDied carries rank, node and process id as attributes and in its text."""
    error = rebuild(describe_death(2, "it was ended by SIGTERM"), WORKERS, [0])
    assert isinstance(error, WorkerDied)
    assert (error.rank, error.node_ip, error.pid) == (2, "10.0.0.1", 12)
    assert "rank 2 of 3 on node 10.0.0.1 (pid 12) ended: it was ended by SIGTERM" in str(error)
    assert error.__notes__ == ["1 other rank failed in consequence."]


def test_a_broken_link_after_a_peer_returned_asks_the_likely_question() -> None:
    """Ranks that return early leave others waiting: the report says who had returned."""
    lost = fail(RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1"))
    assert lost.broken_link
    notes = "\n".join(rebuild(lost, WORKERS, [2]).__notes__)
    assert "Rank 2 had returned already" in notes


@pytest.mark.parametrize("error", [ValueError("Connection reset"), RuntimeError("shape mismatch")])
def test_ordinary_errors_are_no_broken_links(error: Exception) -> None:
    """Only runtime errors of the communication library count as consequences."""
    assert not fail(error).broken_link


def test_a_broken_link_is_seen_through_the_users_own_exception() -> None:
    """A user's exception raised from a lost connection is a consequence too."""
    mine = ValueError("my own text")
    mine.__cause__ = RuntimeError("Connection reset by peer")
    assert fail(mine).broken_link


@pytest.mark.parametrize(
    ("told", "cause"),
    [
        (
            "Worker exits unexpectedly. Worker exits with an exit code 1. The process receives a SIGTERM.",
            "SIGTERM",
        ),
        ("Worker exits unexpectedly. Worker exits with an exit code 4.", "code 4"),
        ("The actor is dead because it was killed by `ray.kill`.", r"ray\.kill"),
        ("The actor is temporarily unavailable: RpcError", "node was lost"),
        (
            "connection error code 2. End of file. Some common causes include: "
            "(1) the process was killed by the "
            "OOM killer due to high memory usage, (2) ray stop",
            "killed .*by a crash in native code",
        ),
        ("Task was killed due to the node running low on memory.", "ran out of memory"),
        ("something new", "something new"),
        ("", "unknown"),
    ],
)
def test_a_long_story_of_death_becomes_a_few_words(told: str, cause: str) -> None:
    """What is known is told, what Ray only guesses is not."""
    assert re.search(cause, explain_death(told))


def test_notes_appear_in_a_printed_traceback() -> None:
    """What a user sees at the terminal contains the remote frames."""
    error = rebuild(fail(ValueError("boom")), WORKERS, [])
    printed = "".join(traceback.format_exception(error))
    assert printed.index("ValueError: boom") < printed.index("Raised on rank 1")


class Custom(Exception):
    """Its constructor takes other arguments than pickle knows of."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")
        self.number = number


def test_an_exception_with_a_constructor_of_its_own_keeps_its_type() -> None:
    """Such an exception, which pickle alone cannot rebuild, arrives as itself with its attributes."""
    try:
        raise Custom("rank", 3)
    except Custom as error:
        described = describe(error, rank=1, where=None, hidden=(), output=())
    found = _unpickle(described)
    assert type(found) is Custom
    assert (str(found), found.number) == ("rank 3", 3)
