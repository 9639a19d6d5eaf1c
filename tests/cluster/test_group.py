"""A group that works: runs, events, questions, signals, stacks, and what a worker sees. Real Ray, three
ranks.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import pytest

from cluster import GroupError, SerializationError, WorkerContext, WorkerGroup

pytestmark = pytest.mark.ray


def describe_myself(context: WorkerContext) -> dict[str, Any]:
    """All that a worker knows of itself."""
    import torch

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "OMP_NUM_THREADS")
    return {
        "context": (context.rank, context.world_size, context.local_rank, context.local_world_size),
        "node": (context.node_rank, context.num_nodes, context.node_ip),
        "device": context.device,
        "environ": {name: os.environ[name] for name in names},
        "threads": torch.get_num_threads(),
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "main_thread": threading.get_ident(),
    }


def add_up(context: WorkerContext, offset: float) -> float:
    """The sum over ranks of rank + offset."""
    import torch
    import torch.distributed as dist

    total = torch.tensor(context.rank + offset)
    dist.all_reduce(total)
    return float(total)


def test_results_come_in_rank_order_with_torchruns_variables(group: WorkerGroup) -> None:
    """Each rank knows itself, by its context and by the environment variables that torchrun sets."""
    for rank, (seen, worker) in enumerate(zip(group.run(describe_myself), group.workers, strict=True)):
        assert seen["context"] == (rank, 3, rank, 3)
        assert seen["node"] == (0, 1, "127.0.0.1")
        assert seen["device"] == worker.device == "cpu"
        assert seen["environ"] == {
            "RANK": str(rank),
            "WORLD_SIZE": "3",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "3",
            "GROUP_RANK": "0",
            "OMP_NUM_THREADS": "1",
        }
        assert seen["threads"] == 1
        assert seen["pid"] == worker.pid
        assert seen["cwd"] == os.getcwd()


def test_ranks_are_connected(group: WorkerGroup) -> None:
    """A collective works, and arguments arrive on every rank."""
    assert group.run(add_up, 0.5) == [4.5, 4.5, 4.5]


def test_arguments_and_results_are_writable_copies(group: WorkerGroup) -> None:
    """What a callable does to its arguments stays with its rank, and the driver may change what it gets."""
    import torch

    def add_rank(context: WorkerContext, weights: torch.Tensor) -> Any:
        weights += context.rank
        return weights.numpy()

    weights = torch.zeros(2)
    results = group.run(add_rank, weights)
    results[0] += 10
    assert [result.tolist() for result in results] == [[10, 10], [1, 1], [2, 2]]
    assert weights.tolist() == [0, 0]


def test_events_arrive_in_order_in_the_callers_thread_before_run_returns(group: WorkerGroup) -> None:
    """No event is lost, reordered within its rank, or late."""
    seen: list[tuple[int, Any]] = []
    threads = set()

    def note(rank: int, event: object) -> None:
        seen.append((rank, event))
        threads.add(threading.get_ident())

    def count(context: WorkerContext) -> None:
        for number in range(200):
            context.emit({"number": number})

    group.run(count, on_event=note)
    for rank in range(3):
        assert [event["number"] for sender, event in seen if sender == rank] == list(range(200))
    assert threads == {threading.get_ident()}


def test_an_event_is_sent_as_it_was_when_emitted(group: WorkerGroup) -> None:
    """Changing an object after emitting it does not change what the driver sees."""
    seen: list[object] = []

    def change(context: WorkerContext) -> None:
        if context.rank == 0:
            event = [1]
            context.emit(event)
            event.append(2)

    group.run(change, on_event=lambda _, event: seen.append(event))
    assert seen == [[1]]


def test_a_question_gets_what_on_ask_returns_after_earlier_events(group: WorkerGroup) -> None:
    """The worker waits for the answer, and the driver has seen everything emitted before the question."""
    seen: list[object] = []

    def consult(context: WorkerContext) -> object:
        context.emit(context.rank)
        return context.ask(context.rank * 10)

    def answer(rank: int, question: object) -> object:
        assert rank in seen
        return question, rank

    assert group.run(consult, on_event=lambda _, e: seen.append(e), on_ask=answer) == [
        (0, 0),
        (10, 1),
        (20, 2),
    ]


def test_signals_reach_running_callables_and_only_that_run(group: WorkerGroup) -> None:
    """A signal sent while the callables run is seen by all, and the next run begins without it."""

    def wait_for_stop(context: WorkerContext) -> object:
        context.emit("begun")
        while "stop" not in context.signals:
            threading.Event().wait(0.001)
        return context.signals["stop"]

    def stop_when_begun(rank: int, _: object) -> None:
        if rank == 2:
            group.signal("stop", "please")

    assert group.run(wait_for_stop, on_event=stop_when_begun) == ["please"] * 3
    group.signal("stop")
    assert group.run(lambda context: dict(context.signals)) == [{}, {}, {}]


def test_stacks_show_where_blocked_callables_are(group: WorkerGroup) -> None:
    """A stack dump works while ranks wait in a collective, and names the user's function first."""
    begun: list[int] = []
    dumps: list[dict[int, str]] = []

    def wait_for_rank_zero(context: WorkerContext) -> None:
        import torch
        import torch.distributed as dist

        context.emit("here")
        while context.rank == 0 and "go" not in context.signals:
            threading.Event().wait(0.001)
        dist.all_reduce(torch.ones(1))

    def look_when_all_are_here(rank: int, _: object) -> None:
        begun.append(rank)
        if len(begun) == 3:
            dumps.append(group.stacks())
            group.signal("go")

    group.run(wait_for_rank_zero, on_event=look_when_all_are_here)
    assert sorted(dumps[0]) == [0, 1, 2]
    for stack in dumps[0].values():
        first = stack.split("\n\n")[0]
        assert "Thread of the callable" in first
        assert "wait_for_rank_zero" in first


def test_rank_zeros_prints_are_written_plainly(
    group: WorkerGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    """What rank 0 prints appears on the driver's streams without prefix; other ranks' does not."""

    def talk(context: WorkerContext) -> None:
        print(f"out of {context.rank}")
        sys.stderr.write(f"err of {context.rank}\n")

    group.run(talk)
    captured = capsys.readouterr()
    assert captured.out == "out of 0\n"
    assert captured.err == "err of 0\n"


def test_output_goes_to_on_output_when_given(group: WorkerGroup, capsys: pytest.CaptureFixture[str]) -> None:
    """A listener gets stream and text, and nothing is written."""
    written: dict[str, str] = {"stdout": "", "stderr": ""}

    def collect(stream: str, text: str) -> None:
        written[stream] += text

    group.run(lambda context: print("10%", end="\r"), on_output=collect)
    assert written == {"stdout": "10%\r", "stderr": ""}
    assert capsys.readouterr().out == ""


def test_every_ranks_output_goes_to_on_rank_output(
    group: WorkerGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its rank; rank 0's is shown as well, the others' is not."""
    said: dict[int, str] = {}

    def collect(rank: int, stream: str, text: str) -> None:
        said[rank] = said.get(rank, "") + f"{stream}:{text}"

    group.run(lambda context: print(f"here {context.rank}"), on_rank_output=collect)
    assert said == {rank: f"stdout:here {rank}\n" for rank in range(group.spec.num_workers)}
    assert capsys.readouterr().out == "here 0\n"


def test_a_run_leaves_the_workers_as_it_found_them(group: WorkerGroup) -> None:
    """Environment, directory, path, threads and torch's defaults are put back after each run."""

    def look(context: WorkerContext) -> list[object]:
        import torch

        return [
            dict(os.environ),
            os.getcwd(),
            list(sys.path),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
        ]

    def change(context: WorkerContext) -> None:
        import torch

        os.environ["MINE"] = "1"
        del os.environ["RANK"]
        os.chdir("/")
        sys.path.append("/nowhere")
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(False)

    before = group.run(look)
    group.run(change)
    assert group.run(look) == before


def test_callables_always_run_in_the_same_thread(group: WorkerGroup) -> None:
    """What is set per thread, such as the CUDA device, holds from run to run."""
    one, two = group.run(describe_myself), group.run(describe_myself)
    assert [seen["main_thread"] for seen in one] == [seen["main_thread"] for seen in two]


def test_what_cannot_be_pickled_is_refused_before_anything_is_sent(group: WorkerGroup) -> None:
    """The group is still alive afterwards."""
    with pytest.raises(SerializationError, match=r"Argument 1 of .*lock"):
        group.run(lambda context, lock: None, threading.Lock())
    assert group.alive
    assert group.run(add_up, 0.0) == [3.0] * 3


def test_a_second_run_at_once_is_refused(group: WorkerGroup) -> None:
    """Two callers cannot share a group."""
    refused: list[str] = []

    def try_another(_: int, __: object) -> None:
        with pytest.raises(GroupError, match="running a callable already") as caught:
            group.run(add_up, 0.0)
        refused.append(str(caught.value))

    group.run(lambda context: context.emit(0), on_event=try_another)
    assert len(refused) == 3
    assert group.alive


def test_the_process_group_can_be_formed_anew(group: WorkerGroup) -> None:
    """After `reform` the same processes are connected by a new generation."""
    pids, before = [worker.pid for worker in group.workers], group.generation
    group.run(lambda context: __import__("torch").distributed.new_group([0, 1]) and None)
    group.reform()
    assert group.generation == before + 1
    assert group.run(lambda context: context.generation) == [before + 1] * 3
    assert group.run(add_up, 0.0) == [3.0] * 3
    assert [worker.pid for worker in group.workers] == pids
