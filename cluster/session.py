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
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster import noise
from cluster.errors import SessionError

_CONNECT_TIMEOUT_S = 5.0


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
    environ: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
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
            return
        _end()
        address = _find_cluster()
        _session = _start_local() if address is None else _attach(address)
        _session.address = ray.get_runtime_context().gcs_address
        atexit.unregister(shutdown)
        atexit.register(shutdown)


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
    with contextlib.suppress(
        Exception
    ):  # these are Ray's inner doors: any surprise means that we cannot tell
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


def _find_cluster() -> str | None:
    """The address to attach to, or None to start a local Ray. Only clusters made by `ray start` count."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address == "local":
        return None
    if address and address != "auto":
        return address
    found = None
    with contextlib.suppress(ImportError, OSError):
        from ray._private.utils import read_ray_address

        found = read_ray_address()
    if found and _answers(found):
        return str(found)
    if address == "auto":
        raise SessionError(
            "RAY_ADDRESS=auto, but no cluster runs on this machine. Start one with `ray start --head`, "
            "or unset RAY_ADDRESS."
        )
    return None


def _answers(address: str) -> bool:
    """Whether anything accepts connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def _attach(address: str) -> _Session:
    import ray

    hint = (
        "Start Ray there, or correct or unset RAY_ADDRESS. If it does run: "
        "its RAY_AUTH_MODE and token may differ from ours "
        f"(RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'not set')})."
    )
    if "://" in address:
        if not address.startswith("ray://"):
            raise SessionError(
                f"RAY_ADDRESS={address} is not an address of Ray. Use host:port of its head node."
            )
        raise SessionError(
            f"RAY_ADDRESS={address} is a Ray Client address, through which no worker group can be driven. "
            "Run on a machine of the cluster with host:port, or submit the program with `ray job submit`."
        )
    if not _answers(address):
        raise SessionError(f"No Ray answers at {address}: nothing accepts connections there. {hint}")
    before = dict(os.environ)
    with _variables(RAY_gcs_rpc_server_connect_timeout_s="5", RAY_NUM_REDIS_GET_RETRIES="3"):
        try:
            ray.init(
                address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR
            )
        except Exception as error:
            ray.shutdown()
            _restore(_changes(before))
            raise SessionError(
                f"No connection to the Ray at {address}: {_first_line(error)}. {hint}"
            ) from error
    return _Session(started=False, environ=_keep_rays(before))


def _start_local() -> _Session:
    import ray

    before = dict(os.environ)
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_get_check_signal_interval_milliseconds", "100")  # Ctrl-C ends a wait this soon
    _choose_authentication()
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
    except BaseException as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        session = _Session(started=True, directory=directory, environ=_changes(before))
        _undo(session)
        if isinstance(error, Exception):
            raise SessionError(
                f"Ray did not start on this machine: {_first_line(error)}. "
                "Check free memory and disk space, and whether a firewall blocks 127.0.0.1."
            ) from error
        raise
    return _Session(started=True, directory=directory, environ=_keep_rays(before))


def _choose_authentication() -> None:
    """A random token where Ray knows tokens, unless the user has decided; else explicitly none."""
    mode = os.environ.get("RAY_AUTH_MODE")
    has_token = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if mode is None:
        os.environ["RAY_AUTH_MODE"] = "token" if _authentication_doors() else "disabled"
    elif mode.lower() != "token":
        return
    if os.environ["RAY_AUTH_MODE"].lower() == "token" and not has_token:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _reread_authentication()


def _authentication_doors() -> tuple[Any, Any] | None:
    """Ray's settings and its token loader, which remember what they read; None in versions without tokens."""
    try:
        from ray import _raylet

        return _raylet.Config, _raylet.AuthenticationTokenLoader  # type: ignore[attr-defined]
    except (ImportError, AttributeError):
        return None


def _reread_authentication() -> None:
    doors = _authentication_doors()
    if doors is not None:
        settings, loader = doors
        settings.initialize("")
        loader.instance().reset_cache()


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


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.setdefault(name, value)
    changes = _changes(before)
    try:
        yield
    finally:
        _restore(changes)


def _changes(before: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """The variables that have changed since, each with its value before and now (None: unset)."""
    return {
        name: (before.get(name), os.environ.get(name))
        for name in before.keys() | os.environ.keys()
        if before.get(name) != os.environ.get(name)
    }


def _keep_rays(before: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Undo at once what is not Ray's own, such as the debugger that `ray.init` installs; return the rest."""
    changes = _changes(before)
    _restore({name: change for name, change in changes.items() if not name.startswith("RAY_")})
    return {name: change for name, change in changes.items() if name.startswith("RAY_")}


def _restore(changes: dict[str, tuple[str | None, str | None]]) -> None:
    """Undo the changes, but for variables that someone has set to something else since."""
    for name, (before, after) in changes.items():
        if os.environ.get(name) != after:
            continue
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _undo(session: _Session) -> None:
    _restore(session.environ)
    if "RAY_AUTH_MODE" in session.environ or "RAY_AUTH_TOKEN" in session.environ:
        _reread_authentication()
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
