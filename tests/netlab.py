"""Ray nodes on one Linux machine, as apart as real ones: a network namespace each, joined by a bridge.

Every node has an address of its own, and faults are those of real networks: a link goes down, packets of one
direction vanish without a word, a link gets slow, a node loses power, a process is frozen. Nothing is added
to the machine's own network, and no packet can leave: the bridge has no uplink. The file system is shared.
It needs root and `ip`; `missing()` says what is not there. `stop` ends every process of every node and
removes the namespaces; nothing of it survives.

Nodes know each other by name, node0 and on, as they do where there is a name service: without names, whatever
looks for that of an address waits 6 s for an answer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_SUBNET = "10.77.0"
_MOST = 250  # nodes: their addresses end in 1 to 250
_PORT = 6379
_NOWHERE = "02:00:00:00:00:01"  # the address of no interface on the bridge
_STORE_BYTES = 100 * 2**20
_START_S = 120.0
_SPACES = Path("/etc/netns")  # `ip netns exec` lets a space see the files of its folder here as those of /etc

HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray's own detection of lost nodes, as fast as its users set it; by default it takes about a minute."""


def missing() -> str | None:
    """Return why namespaces cannot be made here, or None."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    if shutil.which("ip") is None:
        return "the program ip (iproute2) is not installed"
    name = f"probe{os.getpid()}"
    try:
        _run("ip", "netns", "add", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made: {error.stderr.strip()}"
    _run("ip", "netns", "del", name)
    return None


class NetLab:
    """Nodes 0 to `nodes` - 1; node 0 is the head, and where drivers run.

    Args:
        nodes: How many to start with.
        cpus: Of each node, as Ray counts them.
        gpus: Of each node, as Ray counts them: none need be there.
        health_checks: Ray's settings for finding lost nodes, as environment variables.
        labels: Ray's labels of nodes, by number.
        prepare: Shell commands that run on a node before Ray does, by number. What they mount or export is
            seen by that node's Ray alone; interfaces that they add are the node's.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        cpus: int = 2,
        gpus: int = 0,
        health_checks: Mapping[str, str] = HEALTH_CHECKS,
        labels: Mapping[int, Mapping[str, str]] | None = None,
        prepare: Mapping[int, str] | None = None,
    ) -> None:
        self._wanted = nodes
        self._cpus = cpus
        self._gpus = gpus
        self._labels = labels or {}
        self._prepare = prepare or {}
        self._prefix = f"lab{os.getpid()}"
        self._switch = f"{self._prefix}sw"
        self._nodes = 0
        self._home = Path(tempfile.mkdtemp(prefix="lab"))
        self._env = {
            **os.environ,
            **health_checks,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        self._env.pop("RAY_ADDRESS", None)

    @property
    def address(self) -> str:
        """Where Ray's head listens."""
        return f"{self.ip(0)}:{_PORT}"

    @property
    def nodes(self) -> int:
        """How many nodes there have been so far, those that are gone included."""
        return self._nodes

    @property
    def home(self) -> Path:
        """A folder for the lab's files, removed at its end."""
        return self._home

    def ip(self, node: int) -> str:
        """The node's address."""
        return f"{_SUBNET}.{node + 1}"

    def start(self) -> Self:
        """Bring the network and all nodes up; returns once Ray runs on each."""
        _run("ip", "netns", "add", self._switch)
        self._in_switch("link", "add", "br0", "type", "bridge")
        self._in_switch("link", "set", "br0", "up")
        for _ in range(self._wanted):
            self._connect()
        self._wait(0, self._start_ray(0))
        starts = [(node, self._start_ray(node)) for node in range(1, self._wanted)]
        for node, process in starts:
            self._wait(node, process)
        return self

    def add_node(self) -> int:
        """Let one more node join; return its number once Ray runs there."""
        node = self._connect()
        self._wait(node, self._start_ray(node))
        return node

    def popen(self, node: int, arguments: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Start a program on a node; it finds the cluster by RAY_ADDRESS."""
        env = {**self._env, "RAY_ADDRESS": self.address, **options.pop("env", {})}  # type: ignore[dict-item]
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            ["ip", "netns", "exec", self._space(node), *arguments], env=env, text=True, **options
        )

    def python(self, node: int, script: str, *arguments: str, timeout_s: float = 300.0) -> str:
        """Run a Python script on a node and return what it printed.

        Raises:
            AssertionError: It failed, or took longer; with its output.
        """
        process = self.popen(
            node,
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            raise AssertionError(f"Not done after {timeout_s:g} s. It printed:\n{output}") from None
        assert process.returncode == 0, f"Exit status {process.returncode}. It printed:\n{output}"
        return output

    # ---------------------------------------------------------------- faults

    def pids(self, node: int) -> list[int]:
        """The processes of a node."""
        listed = _run("ip", "netns", "pids", self._space(node), check=False)
        return [int(item) for item in listed.split()]

    def kill_node(self, node: int) -> None:
        """Kill every process of a node at once. Its kernel goes on: connections are reset."""
        for pid in self.pids(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def power_off(self, node: int) -> None:
        """Take the node away as a power cut does: its link first, so that nobody is told."""
        self.link_down(node)
        self.kill_node(node)

    def freeze(self, pid: int) -> None:
        """Stop a process where it is; its connections stay open and silent."""
        os.kill(pid, signal.SIGSTOP)

    def thaw(self, pid: int) -> None:
        """Let a frozen process go on."""
        os.kill(pid, signal.SIGCONT)

    def link_down(self, node: int) -> None:
        """Cut a node off in both directions; nobody is told."""
        self._in_switch("link", "set", f"port{node}", "down")

    def link_up(self, node: int) -> None:
        """Undo `link_down`."""
        self._in_switch("link", "set", f"port{node}", "up")

    def block_one_way(self, source: int, target: int) -> None:
        """Let packets from `source` to `target` vanish; the other direction works."""
        _run(
            *("ip", "-n", self._space(source), "neigh", "replace", self.ip(target)),
            *("lladdr", _NOWHERE, "dev", "eth0", "nud", "permanent"),
        )

    def unblock(self, source: int, target: int) -> None:
        """Undo `block_one_way`."""
        _run("ip", "-n", self._space(source), "neigh", "del", self.ip(target), "dev", "eth0", check=False)

    def close_ports(self, node: int) -> None:
        """Let nobody connect to a node at the ports that its kernel gives out from now on, as a firewall
        does: attempts vanish, what is connected goes on, and Ray's own ports stay open.
        """
        first, mask = 0x5000, 0xFC00
        ports = f"net.ipv4.ip_local_port_range={first} {first + 0xFFFF - mask}"
        _run("ip", "netns", "exec", self._space(node), "sysctl", "-qw", ports)
        port = ("dev", f"port{node}")
        self._filter("qdisc", "add", *port, "root", "handle", "1:", "htb", "default", "0")
        self._filter("class", "add", *port, "parent", "1:", "classid", "1:1", "htb", "rate", "1mbit")
        self._filter("qdisc", "add", *port, "parent", "1:1", "pfifo", "limit", "0")
        is_attempt = ("match", "u8", "0x02", "0x12", "at", "33")  # SYN without ACK
        self._filter(
            *(
                "filter",
                "add",
                *port,
                "parent",
                "1:",
                "protocol",
                "ip",
                "u32",
                "match",
                "ip",
                "protocol",
                "6",
            ),
            *("0xff", "match", "ip", "dport", str(first), hex(mask), *is_attempt, "flowid", "1:1"),
        )

    def open_ports(self, node: int) -> None:
        """Undo `close_ports`."""
        self._filter("qdisc", "del", "dev", f"port{node}", "root")

    def throttle(self, node: int, megabits_per_s: float) -> None:
        """Limit what a node can send."""
        _run(
            *("tc", "-n", self._space(node), "qdisc", "replace", "dev", "eth0", "root", "tbf"),
            *("rate", f"{megabits_per_s:g}mbit", "burst", "64kb", "latency", "400ms"),
        )

    # ---------------------------------------------------------------- ends

    def stop(self) -> None:
        """End everything."""
        for node in range(self._nodes):
            deadline = time.monotonic() + 5.0
            while self.pids(node) and time.monotonic() < deadline:
                self.kill_node(node)
                time.sleep(0.02)
            _run("ip", "netns", "del", self._space(node), check=False)
            shutil.rmtree(_SPACES / self._space(node), ignore_errors=True)
        _run("ip", "netns", "del", self._switch, check=False)
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---------------------------------------------------------------- pieces

    def _space(self, node: int) -> str:
        return f"{self._prefix}n{node}"

    def _in_switch(self, *arguments: str) -> None:
        _run("ip", "-n", self._switch, *arguments)

    def _filter(self, *arguments: str) -> None:
        _run("tc", "-n", self._switch, *arguments)

    def _connect(self) -> int:
        """Make the namespace of one more node and plug it into the bridge."""
        node = self._nodes
        self._nodes += 1
        space, port = self._space(node), f"port{node}"
        (_SPACES / space).mkdir(parents=True, exist_ok=True)
        names = "".join(  # torch asks for the name of the address as IPv6 writes it
            f"{prefix}{self.ip(other)} node{other}\n" for other in range(_MOST) for prefix in ("", "::ffff:")
        )
        (_SPACES / space / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n{names}")
        _run("ip", "netns", "add", space)
        self._in_switch("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._in_switch("link", "set", port, "master", "br0", "up")
        _run("ip", "-n", space, "addr", "add", f"{self.ip(node)}/24", "dev", "eth0")
        _run("ip", "-n", space, "link", "set", "eth0", "up")
        _run("ip", "-n", space, "link", "set", "lo", "up")
        # Leads nowhere; without one, Ray takes the loopback address for the node's own.
        _run("ip", "-n", space, "route", "add", "default", "via", f"{_SUBNET}.254", "dev", "eth0")
        return node

    def _start_ray(self, node: int) -> subprocess.Popen[str]:
        ray = os.path.join(os.path.dirname(sys.executable), "ray")
        arguments = [
            *(ray, "start", f"--node-ip-address={self.ip(node)}", "--disable-usage-stats"),
            *(f"--num-cpus={self._cpus}", f"--num-gpus={self._gpus}"),
            f"--object-store-memory={_STORE_BYTES}",
            # A folder each: nodes that start at once in a common one time out.
            f"--temp-dir={self._home / f'n{node}'}",
        ]
        if node in self._labels:
            arguments += ["--labels", ",".join(f"{key}={value}" for key, value in self._labels[node].items())]
        if node == 0:
            arguments += ["--head", f"--port={_PORT}", "--include-dashboard=false"]
        else:
            arguments += [f"--address={self.address}"]
        shell = ["sh", "-ec", f'{self._prepare[node]}\nexec "$@"', "sh"] if node in self._prepare else []
        with self._log(node).open("w") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._space(node), *shell, *arguments],
                env=self._env,
                text=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _log(self, node: int) -> Path:
        return self._home / f"start{node}.log"

    def _wait(self, node: int, process: subprocess.Popen[str], attempts: int = 3) -> None:
        """Wait until Ray runs on a node; on a busy machine it sometimes gives up, and is started again."""
        try:
            status = process.wait(timeout=_START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status == 0:
            return
        if attempts == 1:
            raise RuntimeError(f"Ray did not start on node {node}:\n{self._log(node).read_text()}")
        self.kill_node(node)
        self._wait(node, self._start_ray(node), attempts - 1)


def _run(*arguments: str, check: bool = True) -> str:
    return subprocess.run(arguments, check=check, text=True, capture_output=True).stdout
