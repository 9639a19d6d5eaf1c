"""Why a run stands still, decided from stacks: which rank, which line, and when nothing is to be said."""

from __future__ import annotations

import threading

import pytest

from cluster.autopsy import LONG, VERY_LONG, Verdict, diagnose, waits_in
from cluster.rank_state import Frame, RankState, is_users, observe
from cluster.ranks import Place, WorkerInfo, assign_ranks
from cluster.standstill import Suspicion

WORKERS: list[WorkerInfo] = [
    info for _, info in assign_ranks([Place(node_id="n", node_ip="10.0.0.1", pid=p) for p in (10, 11, 12)])
]


def frame(module: str, function: str, line: int = 1, text: str = "") -> Frame:
    """A call, the user's where its module is `train`."""
    return Frame(
        file=f"{module}.py",
        line=line,
        function=function,
        module=module,
        text=text,
        is_users=module == "train",
    )


def state(*frames: Frame, load: float = 0.0, calls: int | None = None, moved: bool = False) -> RankState:
    return RankState(
        frames=frames, load=load, calls=calls, moved=moved, where="epoch 1, step 7" if frames else None
    )


STEP = frame("orchestrator.step", "run", 5)
ALL_REDUCE = frame("torch.distributed.distributed_c10d", "all_reduce", 9)
WRAPPER = frame("torch.distributed.c10d_logger", "wrapper", 8)
LOCKED = frame("train", "training_step", 31, "lock.acquire()")
REDUCES = frame("train", "training_step", 40, "dist.all_reduce(loss)")
BACKWARD = frame("torch.autograd.graph", "_engine_run_backward", 7)
IN_REDUCE = state(STEP, REDUCES, WRAPPER, ALL_REDUCE, calls=8)
IN_BACKWARD = state(STEP, BACKWARD, calls=8)


def test_the_rank_that_is_elsewhere_is_named_with_its_line() -> None:
    """Where one rank is stuck and the others wait, it is the culprit, at the innermost line of the user's."""
    stuck = state(STEP, LOCKED, frame("threading", "wait"), calls=7)
    found = diagnose(WORKERS, {0: IN_REDUCE, 1: stuck, 2: IN_BACKWARD}, 12.0)
    assert (found.verdict, found.culprits, found.patience) == (Verdict.ABSENT, (1,), 1)
    assert found.line == LOCKED
    assert found.text.startswith(
        "Autopsy: no rank has got on for 12 s (epoch 1, step 7). "
        "The others wait for rank 1 on node 10.0.0.1 (pid 11). Nothing is stopped.\n"
    )
    assert (
        "  rank 0 on node 10.0.0.1 (pid 10) waits in all_reduce, after 8 collective calls, at\n" in found.text
    )
    assert "train.py:31 in training_step: lock.acquire()\n" in found.text
    assert "(it waits for another thread)" in found.text


def test_ranks_in_different_collectives_are_told_apart() -> None:
    """A collective that the user's code calls on some ranks only is the odd one; equals have none."""
    meet = frame("orchestrator.fit", "meet", 3)
    gather = state(STEP, meet, frame("torch.distributed.distributed_c10d", "all_gather_object"))
    found = diagnose(WORKERS, {0: IN_REDUCE, 1: gather, 2: gather}, 12.0)
    assert (found.verdict, found.culprits, found.line) == (Verdict.APART, (0,), REDUCES)
    assert "Every rank must make the same collective calls" in found.text
    assert "    orchestrator.fit.py:3 in meet\n    by way of run\n" in found.text
    other = state(STEP, frame("train", "training_step", 41, "dist.barrier()"), ALL_REDUCE)
    assert diagnose(WORKERS, {0: IN_REDUCE, 1: other, 2: other}, 12.0).culprits == (0,)
    assert diagnose(WORKERS[:2], {0: IN_REDUCE, 1: other}, 12.0).culprits == ()


def test_all_in_the_same_collective_blames_no_rank() -> None:
    """Nobody is missing, so the network is looked at, and not before it could be merely slow."""
    found = diagnose(WORKERS, dict.fromkeys(range(3), IN_REDUCE), 40.0)
    assert (found.verdict, found.culprits, found.patience) == (Verdict.TOGETHER, (), LONG)
    assert "orchestrator doctor" in found.text


def test_what_may_be_slow_is_given_time() -> None:
    """A rank that computes, holds the interpreter, or saves, keeps others waiting for longer before it
    counts; one that has returned does not.
    """
    for culprit, patience in (
        (state(STEP, LOCKED, load=0.9), LONG),
        (state(STEP, LOCKED, moved=True), LONG),
        (None, LONG),
        (RankState(frames=(STEP, LOCKED), holds_lock=True), LONG),
        (state(frame("orchestrator.checkpoint.writer", "write")), VERY_LONG),
        (state(frame("train", "prepare_data")), VERY_LONG),
        (state(frame("torch._dynamo.eval_frame", "compile")), VERY_LONG),
        (state(STEP, frame("torch.utils.data.dataloader", "_try_get_data"), frame("queue", "get")), LONG),
        (RankState(frames=()), 1),
    ):
        found = diagnose(
            WORKERS[:2], {0: IN_REDUCE, 1: culprit}, 9.0, {"orchestrator.checkpoint", "prepare_data"}
        )
        assert (found.verdict, found.culprits, found.patience) == (Verdict.ABSENT, (1,), patience)


def test_a_long_computation_is_not_told() -> None:
    """Where no rank waits for another and one computes, as in a compilation, nothing is ever said; where all
    are idle, it is, at last.
    """
    computing, idle = state(STEP, LOCKED, load=1.0), state(STEP, LOCKED)
    assert diagnose(WORKERS[:2], {0: computing, 1: idle}, 500.0).patience is None
    assert diagnose(WORKERS[:2], {0: idle, 1: idle}, 500.0).patience == VERY_LONG


def test_counts_of_calls_tell_what_stacks_do_not() -> None:
    """Where no stack shows a collective, a rank that is one call ahead waits for it, though it looks busy, as
    one does that waits for its GPU.
    """
    reads = frame("train", "validation_step", 50, "loss.item()")
    for load in (0.0, 1.0):
        ahead = state(STEP, reads, calls=9, load=load)
        found = diagnose(WORKERS[:2], {0: ahead, 1: state(STEP, LOCKED, calls=8)}, 12.0)
        assert (found.verdict, found.culprits, found.patience) == (Verdict.ABSENT, (1,), 1)
        assert "waits in its collective call number 9" in found.text


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (IN_REDUCE, "all_reduce"),
        (IN_BACKWARD, "backward, where gradients are averaged"),
        (state(BACKWARD, load=0.8), None),
        (state(BACKWARD, frame("train", "hook")), None),
        (state(STEP, frame("cluster.snapshots", "hand_over")), "the exchange of copies before a commit"),
        (state(frame("torch.nn.parallel.distributed", "_sync_buffers")), "_sync_buffers"),
        (state(LOCKED), None),
        (RankState(frames=()), None),
    ],
)
def test_what_a_rank_waits_in_is_read_from_its_stack(seen: RankState, expected: str | None) -> None:
    """Collectives count by their outermost name; torch's inner waiting only where nothing is computed."""
    assert waits_in(seen) == expected


def test_a_thread_is_seen_with_its_line_and_load() -> None:
    """The stack of another thread ends in the line that it is at, marked as the user's; idle is idle."""
    told, done = threading.Event(), threading.Event()
    ids: list[int] = []

    def wait_here() -> None:
        ids.extend([threading.get_ident(), threading.get_native_id()])
        told.set()
        done.wait()

    thread = threading.Thread(target=wait_here)
    thread.start()
    told.wait()
    try:
        seen = observe(*ids, hidden=())
    finally:
        done.set()
        thread.join()
    line = next(item for item in reversed(seen.frames) if item.is_users)
    assert (line.function, line.text) == ("wait_here", "done.wait()")
    assert (seen.moved, seen.has_returned) == (False, False)
    assert seen.load < 0.2
    assert observe(None, None, hidden=()).has_returned


def test_installed_code_is_not_the_users() -> None:
    """The standard library, installed packages, torch and this project are told from what is the user's."""
    assert is_users(__file__, __name__)
    assert not is_users(__file__, __name__, ["tests"])
    assert not is_users(threading.__file__, "threading")
    assert not is_users(pytest.__file__, "pytest")
    assert not is_users("/anywhere/torch/x.py", "torch.x")


def test_it_is_looked_at_in_time_and_told_once() -> None:
    """A standstill is due at its patience, and three and six times it; once told it is not due again, and its
    end is told.
    """
    suspicion = Suspicion(10.0)
    assert [suspicion.note(still_s)[0] for still_s in (0.0, 9.9, 10.5, 11.0, 29.0, 31.0)] == [
        *(None, None, 1, None, None, 3)
    ]
    assert not suspicion.found(6)
    assert suspicion.note(60.0) == (6, None)
    assert suspicion.found(6)
    assert suspicion.note(600.0) == (None, None)
    assert suspicion.note(0.2) == (None, 600.0)
    assert suspicion.threshold_s == 1800.0


def test_a_run_of_long_steps_is_given_time() -> None:
    """After its first pauses, a run is suspected at three times its longest; quick runs at the patience."""
    suspicion = Suspicion(10.0)
    for _ in range(5):
        assert suspicion.note(9.0)[0] is None
        suspicion.note(0.0)
    assert suspicion.threshold_s == 10.0
    suspicion.note(8.0)
    suspicion.note(0.0)
    assert suspicion.threshold_s == 24.0
    assert suspicion.note(20.0)[0] is None
    suspicion.forget()
    assert suspicion.note(25.0)[0] == 1
