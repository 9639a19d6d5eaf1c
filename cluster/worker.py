"""The actor: one warm process that runs callables, and answers control calls while one runs.

The callable runs in the actor's main lane, always the same thread; polls, signals, answers and stack dumps
have lanes of their own, so they work while the callable computes or waits in a collective. What a callable
changes of the process's surroundings (environment variables, working directory, thread count, streams) is put
back after it. An exception of the callable is a normal answer, a `Failure`, so nothing of Ray's own error
wrapping reaches the user; only the end of the process itself shows as an error of the call.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cluster import native_stack, network, preemption, preflight, sources
from cluster.context import WorkerContext
from cluster.errors import SerializationError
from cluster.failure import Failure, describe
from cluster.heartbeat import Beacon, HeartbeatAddress
from cluster.mailbox import Batch, Mailbox
from cluster.membership import Membership
from cluster.output import Tail, captured
from cluster.process_group import StoreAddress, connect_store
from cluster.rank_state import RankState, observe
from cluster.ranks import Place, WorkerInfo
from cluster.serialization import Parcel, dump, load
from cluster.snapshots import Snapshots
from cluster.surroundings import restored

if TYPE_CHECKING:
    import psutil
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["LANES", "Assignment", "Success", "Worker", "WorkerContext"]

LANES = {"poll": 1, "signal": 1, "control": 2, "life": 1}  # threads beside the callable's own
_WARM_IMPORTS = ("torch", "torch.optim", "torch.distributed", "torch._dynamo")  # optimizers need the last
_PYTHONS_OWN = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_REAP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a worker is told once all are placed: who it is, and how to behave.

    Attributes:
        info: its ranks and device.
        store: where the driver's store listens.
        heartbeat: where the driver listens for signs of life.
        member: the number that this worker gives them under.
        threads: intra-op threads.
        peer: an address that the other workers are reached at.
        cwd: the driver's working directory, taken if it exists here.
        backend, collective_timeout_s: of the process group.
    """

    info: WorkerInfo
    store: StoreAddress
    heartbeat: HeartbeatAddress
    member: int
    threads: int
    peer: str
    cwd: str
    backend: str
    collective_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """What a callable returned, pickled."""

    data: Parcel


class Worker:
    """One process of a group. Its methods are called by `WorkerGroup` only."""

    def __init__(self) -> None:
        self._assignment: Assignment | None = None
        self._store: TCPStore | None = None
        self._membership: Membership | None = None
        self._beacon: Beacon | None = None
        self._runs: dict[int, tuple[Mailbox, dict[str, object]]] = {}
        self._runs_lock = threading.Lock()
        self._thread_id: int | None = None
        self._native_id: int | None = None
        self._probe = preflight.Probe()
        self._context: WorkerContext | None = None
        self._threads: set[threading.Thread] = set()  # that were there when the last run began
        preemption.set_handler(self._told_to_go)
        native_stack.register()

    def prepare(
        self, env: Mapping[str, str], preload: Sequence[str], store: tuple[StoreAddress, float] | None = None
    ) -> Place:
        """Set the environment, import what every callable will need, and say where this process is.

        Args:
            env: environment variables.
            preload: modules to import behind the answer, while this process waits for others.
            store: where the driver's store listens, and the timeout of its operations in seconds, where it
                is there already. Connecting takes seconds where addresses have no names, as torch looks for
                one; who has done so before it is needed takes a lost rank's place without.
        """
        import ray

        os.environ.update(env)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hides a harmless line on missing reverse DNS
        for name in _WARM_IMPORTS:
            importlib.import_module(name)
        if store is not None:
            self._store = connect_store(*store)
        gc.freeze()  # what was imported is never garbage, so collecting after a run is quick
        threading.Thread(target=_import_all, args=(preload,), name="cluster-preload", daemon=True).start()
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Place(
            node_id=context.get_node_id(),
            node_ip=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            gpu_ids=tuple(str(gpu) for gpu in gpus),
            report=preflight.report(),
        )

    def open_probe(self, peer: str) -> preflight.Target:
        """Listen for the other nodes' attempts, until the rank is taken; return where."""
        return self._probe.open(peer)

    def try_links(self, targets: Sequence[preflight.Target]) -> list[str | None]:
        """Try to reach the driver and the other nodes; for each: None, or why not."""
        return self._probe.reach(targets)

    def assign(self, assignment: Assignment) -> None:
        """Take the rank: environment variables as torchrun sets them, device, threads, working directory."""
        import torch

        self._probe.close()
        self._assignment, info = assignment, assignment.info
        os.environ.update(
            RANK=str(info.rank),
            WORLD_SIZE=str(info.world_size),
            LOCAL_RANK=str(info.local_rank),
            LOCAL_WORLD_SIZE=str(info.local_world_size),
            GROUP_RANK=str(info.node_rank),
            MASTER_ADDR=assignment.store.host,
            MASTER_PORT=str(assignment.store.port),
            TORCHELASTIC_USE_AGENT_STORE="True",  # rank 0 must not start a store: the driver has
            OMP_NUM_THREADS=str(assignment.threads),
        )
        if info.visible_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(info.visible_gpus)
            if torch.cuda.is_available():
                torch.cuda.set_device(torch.device(info.device))
        if os.path.isdir(assignment.cwd):
            os.chdir(assignment.cwd)
        host = network.address_towards(assignment.peer)
        network.name_interface(host)
        self._beacon = Beacon(assignment.heartbeat, assignment.member, _end_now)
        self._membership = Membership(
            self._store or connect_store(assignment.store, assignment.collective_timeout_s),
            rank=info.rank,
            world_size=info.world_size,
            backend=assignment.backend,
            timeout_s=assignment.collective_timeout_s,
            device=info.device,
            snapshots=Snapshots(host, info.node_id, assignment.heartbeat.token),
        )

    def lacks(self, digests: Mapping[str, str]) -> bool:
        """Whether this process would import any of these source files from elsewhere, or not at all."""
        return bool(sources.missing(digests))

    def take_sources(self, bundle: sources.Bundle) -> None:
        """Import the user's modules from this bundle from now on."""
        import ray

        session: Any = ray._private.worker._global_node
        sources.unpack(bundle, os.path.join(session.get_session_dir_path(), "sources"))

    def join(self, generation: int, members: Sequence[int]) -> None:
        """Form the process group of this generation with its other members, in this order."""
        self._member().join(generation, members)

    def want(self, generation: int, members: Sequence[int]) -> None:
        """Free the callable from the present process group, and let it join this generation."""
        self._member().want(generation, members)

    def give_up(self) -> None:
        """Free the callable from the present process group, and let it join no other."""
        self._member().give_up()

    def run(self, run: int, payload: Parcel, recovers: bool, tells_all: bool = False) -> Success | Failure:
        """Run one callable.

        Args:
            run: the number of this run.
            payload: the pickled (callable, arguments).
            recovers: the callable may rejoin after the loss of a peer.
            tells_all: what is printed goes to the driver from every rank, not from rank 0 only.
        """
        info, tail = self._known().info, Tail()
        mailbox, signals = self._open(run)
        with self._runs_lock:
            self._runs = {run: (mailbox, signals)}
        self._threads = set(threading.enumerate())
        context = WorkerContext(info, signals, mailbox, self._member(), self._beacon, recovers=recovers)
        if not context.joining:
            self._member().snapshots.forget()
        self._thread_id, self._context = threading.get_ident(), context
        self._native_id = threading.get_native_id()
        forward = mailbox.write if info.rank == 0 or tells_all else None
        try:
            with captured(tail, forward), restored(self._known().threads):
                try:
                    fn, args = load(payload)
                    result = fn(context, *args)
                    return Success(data=dump(result, "what the callable returned"))
                except BaseException as error:
                    where = _ask_where(context)
                    shown = () if info.rank == 0 else tail.lines()
                    if isinstance(error, SerializationError) and error.__cause__ is not None:
                        error.__cause__ = None  # its message says it all
                    return describe(error, rank=info.rank, where=where, hidden=context.hidden, output=shown)
        finally:
            self._thread_id = self._native_id = self._context = None
            if self._beacon is not None:
                self._beacon.read, self._beacon.progress = None, 0
            mailbox.close()
            fn = args = result = context = None  # type: ignore[assignment]
            gc.collect()  # models and loaders of this run go now, not in the middle of the next

    def poll(self, run: int, acknowledged: int, wait_s: float) -> Batch:
        """What the run said after the acknowledged number; waits up to `wait_s` seconds for it."""
        return self._open(run)[0].poll(acknowledged, wait_s)

    def signal(self, run: int, name: str, value: object) -> None:
        """Set a value in the run's `signals`, also when the run has not begun here."""
        self._open(run)[1][name] = value

    def announce(self, run: int, name: str, value: object) -> Any:
        """Set a value in the run's `signals` and return where the callable was right behind that; None where
        it has not said."""
        self.signal(run, name, value)
        context = self._context
        return None if context is None or context.position is None else context.position()

    def answer(self, run: int, number: int, data: bytes) -> None:
        """Answer the run's question of that number."""
        self._open(run)[0].answer(number, data)

    def stacks(self) -> str:
        """The stack of every Python thread of this process, the callable's first."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != self._thread_id)
        own = threading.get_ident()
        parts = []
        for ident, frame in frames:
            if ident != own:
                name = "the callable" if ident == self._thread_id else names.get(ident, str(ident))
                parts.append(f"Thread of {name}:\n" + "".join(traceback.format_stack(frame)))
        return "\n".join(parts)

    def observe(self) -> RankState:
        """What the callable is doing; takes half a second."""
        context = self._context
        hidden = () if context is None else context.hidden
        state = observe(self._thread_id, self._native_id, hidden)
        return state if context is None else replace(state, where=_ask_where(context))

    def live(self) -> None:
        """Never return: the call ends with the process, which is how the driver learns of it."""
        threading.Event().wait()

    def is_clean(self) -> bool:
        """Whether nothing of the last run is left: no thread that it began, no process but those that Python
        itself keeps, and nothing on a GPU.
        """
        import psutil  # Ray brings it
        import torch

        if torch.cuda.is_initialized():
            return False
        for thread in threading.enumerate():
            if thread not in self._threads and not isinstance(thread, threading._DummyThread):  # Ray's lanes
                thread.join(_REAP_S)
                if thread.is_alive():
                    return False
        return not any(_lives_on(child) for child in psutil.Process().children())

    def end_children(self) -> None:
        """Kill the processes that this one started, while it is there to name them."""
        import psutil  # Ray brings it

        children = psutil.Process().children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=_REAP_S)

    def _told_to_go(self) -> None:
        """Tell the driver of a SIGTERM, or end where nobody there would heed it."""
        context = self._context
        if context is None or not context.heeds_notices:
            preemption.end_quietly()
        else:
            context.emit(preemption.ToldToGo(pid=os.getpid(), node_ip=context.node_ip))

    def _known(self) -> Assignment:
        assert self._assignment is not None, "assign comes before join and run"
        return self._assignment

    def _member(self) -> Membership:
        assert self._membership is not None, "assign comes before join and run"
        return self._membership

    def _open(self, run: int) -> tuple[Mailbox, dict[str, object]]:
        """The run's mailbox and signals; made by whichever call of the run comes first."""
        with self._runs_lock:
            if run not in self._runs:
                self._runs[run] = (Mailbox(), {})
            return self._runs[run]


def _lives_on(process: psutil.Process) -> bool:
    """Whether a process goes on, or one that Python's fork server has made for the callable."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        command = " ".join(process.cmdline())
        if not any(name in command for name in _PYTHONS_OWN):
            return True
        return any(child.status() != psutil.STATUS_ZOMBIE for child in process.children())
    return False


def _import_all(names: Sequence[str]) -> None:
    """Import modules; what cannot be imported here says so where it is needed."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _end_now() -> None:
    """End this process: the driver is gone, or has replaced it and hung up."""
    os._exit(1)


def _ask_where(context: WorkerContext) -> str | None:
    if context.where is None:
        return None
    try:
        return str(context.where())
    except Exception as error:
        return f"(where() failed: {error!r})"
