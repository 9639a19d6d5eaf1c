"""Connects this process to Ray by Ray's own rules, and ends what it started.

`connect` uses a Ray that is initialised already; else it attaches to RAY_ADDRESS or to the cluster that `ray
start` made on this machine; else it starts a local one. A local one belongs to this process: no dashboard, no
usage report, no log lines on the terminal, a random token to talk to it, a temporary directory of its own,
and nothing in HOME. `shutdown` ends it and puts everything back, environment variables included; a Ray that
others started is left as it is.

What a local Ray listens on: given the address 127.0.0.1 all its sockets (GCS, raylet, the agent for runtime
environments, each worker) are bound to loopback. `ray.init` itself replaces that address by the machine's
own, and then all but the agent listen on every interface; so the switch that Ray has for laptops is set while
it starts. Where a version of Ray lacks that switch, the token still keeps others out.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from cluster import authentication, exit_status, noise
from cluster.environment import Changes, changes_since, defaulted, undo
from cluster.errors import SessionError

exit_status.keep_interrupts()

_CONNECT_TIMEOUT_S = 5.0
_SWEEP_AFTER_S = 600.0
_END_S = 10.0
_TIMED_OUT = "timed out during startup"
_ATTEMPTS = 3


@dataclass(slots=True, kw_only=True)
class _Session:
    """What is to be undone.

    Attributes:
        started: whether the Ray is ours, or we attached to another's.
        address: its address; a Ray that the user made since then has another.
        directory: its temporary directory.
        environ: the variables changed, each with its value before (None: unset) and after.
        pid: the process that connected; a forked child owns nothing.
    """

    started: bool
    address: str = ""
    directory: str | None = None
    environ: Changes = field(default_factory=dict)
    pid: int = field(default_factory=os.getpid)

    def is_current(self) -> bool:
        """Whether this process is connected to the Ray of this session."""
        import ray

        return (
            self.pid == os.getpid()
            and ray.is_initialized()
            and ray.get_runtime_context().gcs_address == self.address
        )


_session: _Session | None = None
_lock = threading.RLock()


def connect() -> None:
    """Make sure that this process is connected to Ray. Does nothing if it is.

    Raises:
        SessionError: nothing answers at RAY_ADDRESS, the cluster there refuses us, or a local Ray does not
            start.
    """
    global _session
    import ray

    with _lock:
        if ray.is_initialized():
            _refuse_client()
            return
        _end()
        address, found = _find_cluster()
        _session = _start_local() if address is None else _attach(address, found=found)
        _session.address = ray.get_runtime_context().gcs_address
        atexit.unregister(shutdown)
        atexit.register(shutdown)


def find() -> str | None:
    """Return the address of the cluster that `connect` attaches to; None where it starts a local Ray.

    Raises:
        SessionError: RAY_ADDRESS=auto, and there is no cluster on this machine.
    """
    return _find_cluster()[0]


def owned() -> bool:
    """Whether `connect` started the Ray that this process is connected to."""
    return _session is not None and _session.started and _session.is_current()


def shutdown() -> None:
    """End the Ray that `connect` started, or leave the one it attached to. A second call does nothing."""
    with _lock:
        _end()


def may_grow() -> bool:
    """Whether an autoscaler may add nodes to this cluster. True when that cannot be told."""
    if owned():
        return False
    with contextlib.suppress(Exception):  # Ray's inner doors: any surprise means that we cannot tell
        from ray.experimental.internal_kv import _internal_kv_get

        if _internal_kv_get("__autoscaler_v2_enabled", namespace="__autoscaler") != b"1":
            status = _internal_kv_get("__autoscaling_status")
            report = json.loads(status)["autoscaler_report"] if status else {}
            return not only_mirrors(report.get("node_type_mapping") or {})
        import ray
        from ray.autoscaler.v2.sdk import get_cluster_status

        cluster = get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = (*cluster.active_nodes, *cluster.idle_nodes)
        return not only_mirrors({str(node.node_id): str(node.ray_node_type_name) for node in nodes})
    return True


def only_mirrors(node_types: dict[str, str]) -> bool:
    """Whether all node types were made up from the nodes that exist, as Ray does where it has no autoscaler.

    Args:
        node_types: the type's name by node id.
    """
    return bool(node_types) and all(kind == f"node_{node_id}" for node_id, kind in node_types.items())


def _find_cluster() -> tuple[str | None, bool]:
    """The address to attach to, or None to start a local Ray; and whether it was found on this machine.

    Of the clusters on this machine only those made by `ray start` count, never another program's own.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address == "local":
        return None, False
    if address and address != "auto":
        return address, False
    found = None
    with contextlib.suppress(ImportError, OSError):
        from ray._private.utils import read_ray_address

        found = read_ray_address()
    if found and _answers(found):
        return str(found), True
    if address == "auto":
        raise SessionError(
            "RAY_ADDRESS=auto, but no cluster runs on this machine. Start one with `ray start --head`, "
            "or unset RAY_ADDRESS."
        )
    return None, False


def _refuse_client() -> None:
    """Ray Client's proxies can neither hold a placement group's actors nor be reached by workers."""
    import ray

    if ray.util.client.ray.is_connected():
        raise SessionError(
            "Ray was initialised as a Ray Client (ray://...), through which no worker group can be driven. "
            "Run on a machine of the cluster with host:port, or submit the program with `ray job submit`."
        )


def _answers(address: str) -> bool:
    """Whether anything accepts connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def _attach(address: str, *, found: bool) -> _Session:
    """Connect to a Ray of others; `found`: on this machine, rather than by RAY_ADDRESS."""
    import ray

    hint = (
        "Start Ray there, or correct RAY_ADDRESS (RAY_ADDRESS=local starts one of our own). If it does run: "
        "its RAY_AUTH_MODE and token may differ from ours "
        f"(RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'not set')})."
    )
    if "://" in address:
        if not address.startswith("ray://"):
            raise SessionError(
                f"RAY_ADDRESS={address} is not an address of Ray. Use host:port of its head node."
            )
        raise SessionError(
            f"RAY_ADDRESS={address} is a Ray Client's, through which no worker group can be driven. "
            "Run on a machine of the cluster with host:port, or submit the program with `ray job submit`."
        )
    if not _answers(address):
        raise SessionError(f"No Ray answers at {address}: nothing accepts connections there. {hint}")
    before = dict(os.environ)
    if found:
        authentication.use_stored_token()
    with defaulted(RAY_gcs_server_port_wait_time_s="4"):  # seconds until Ray gives up
        try:
            ray.init(
                address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR
            )
        except Exception as error:
            ray.shutdown()
            undo(changes_since(before))
            text = f"{error}{error.__cause__}"
            reason = "it refused our token" if "InvalidAuthToken" in text else _first_line(error)
            message = explain_mismatch(text) or f"{reason}. {hint}"
            raise SessionError(f"No connection to the Ray at {address}: {message}") from error
    return _Session(started=False, environ=_keep_rays(before))


def explain_mismatch(text: str) -> str | None:
    """Say in one line which versions of Ray or Python do not go together, from Ray's error; else None.

    >>> explain_mismatch("Version mismatch: The cluster was started with: Ray: 2.51.0 Python: 3.12.1 "
    ...                  "This process on 10.0.0.1 was started with: Ray: 2.60.0 Python: 3.11.7")
    'it runs Ray 2.51.0 on Python 3.12.1, this process Ray 2.60.0 on Python 3.11.7. Use the same versions.'
    """
    found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)
    if "Version mismatch" not in text or len(found) < 2:
        return None
    theirs, ours = (f"Ray {ray} on Python {python}" for ray, python in found[:2])
    return f"it runs {theirs}, this process {ours}. Use the same versions."


def _sweep(root: str) -> None:
    """Remove the folders of this user's earlier sessions whose driver was killed and so could not."""
    for name in os.listdir(root):
        found = re.fullmatch(r"ray-(\d+)-[a-z0-9_]{8}", name)
        folder = os.path.join(root, name)
        if found is None or psutil.pid_exists(int(found[1])):
            continue
        with contextlib.suppress(OSError):
            status = os.lstat(folder)
            # A while of grace: processes of Ray may outlive their driver for some seconds.
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > _SWEEP_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)


def _start_local() -> _Session:

    before = dict(os.environ)
    root = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()
    _sweep(root)
    directory = tempfile.mkdtemp(prefix=f"ray-{os.getpid()}-", dir=root)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_get_check_signal_interval_milliseconds", "100")  # Ctrl-C ends a wait this soon
    authentication.set_up_for_a_new_cluster()
    try:
        for attempt in range(_ATTEMPTS):
            try:
                _init_local(directory)
                break
            except Exception as error:  # Ray gives its processes 30 s, which a busy machine may exceed
                if _TIMED_OUT not in str(error) or attempt == _ATTEMPTS - 1:
                    raise
    except BaseException as error:
        session = _Session(started=True, directory=directory, environ=changes_since(before))
        _undo(session)
        if isinstance(error, Exception):
            raise SessionError(
                f"Ray did not start on this machine: {_first_line(error)}. "
                f"Check the load ({os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs), free memory and disk "
                "space, and whether a firewall blocks 127.0.0.1."
            ) from error
        raise
    return _Session(started=True, directory=directory, environ=_keep_rays(before))


def _init_local(directory: str) -> None:
    """Start Ray; where it fails, end those of its processes that it leaves running."""
    import ray

    try:
        with _loopback_only():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
                _temp_dir=directory,
            )
    except BaseException:
        with contextlib.suppress(Exception):
            ray.shutdown()
        _end_processes_of(directory)
        raise


def _end_processes_of(directory: str) -> None:
    """Kill our descendants that were started with this folder for their files."""
    killed = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(directory in argument for argument in process.cmdline()):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=_END_S)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Have Ray take 127.0.0.1 for this node's address while it starts, as it does on laptops."""
    from ray._private import ray_constants

    known = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    if known is None:
        yield
        return
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known


def _keep_rays(before: dict[str, str]) -> Changes:
    """Undo at once what is not Ray's own, such as the debugger that `ray.init` installs; return the rest."""
    changes = changes_since(before)
    undo({name: change for name, change in changes.items() if not name.startswith("RAY_")})
    return {name: change for name, change in changes.items() if name.startswith("RAY_")}


def _undo(session: _Session) -> None:
    undo(session.environ)
    if any(name.startswith("RAY_AUTH") for name in session.environ):
        authentication.reread()
    if session.directory is not None:
        shutil.rmtree(session.directory, ignore_errors=True)


def _end() -> None:
    global _session
    if _session is None:
        return
    session, _session = _session, None
    if session.pid != os.getpid():
        return
    if session.is_current():
        import ray

        ray.shutdown()
    noise.unmute()
    _undo(session)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
