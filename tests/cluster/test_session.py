"""Connecting to Ray and leaving everything as it was: drivers in processes of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from cluster import SessionError, session
from cluster.session import only_mirrors

pytestmark = pytest.mark.ray

Driver = Callable[..., subprocess.CompletedProcess[str]]

LIFE_OF_A_LOCAL_RAY = """
import glob, os, signal, threading
import psutil
from cluster import WorkerDied, pool, session
from tests.cluster.conftest import small_spec


def look():
    threads = {thread.name for thread in threading.enumerate()}
    children = psutil.Process().children(recursive=True)
    return dict(os.environ), threads, children, glob.glob(f"/tmp/ray-{os.getpid()}-*")


def fail_on_one(context):
    return 1 / (1 - context.rank) if context.rank else wait()


def die_on_one(context):
    os.kill(os.getpid(), signal.SIGKILL) if context.rank else wait()


def wait():
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    import torch._dynamo  # sets a variable of its own
    import ray  # likewise

    before = look()
    with pool.lease(small_spec(2)) as group:
        assert session.owned()
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        heard = {c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == "LISTEN"}
        assert heard <= {"127.0.0.1", "::ffff:127.0.0.1"}, heard
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        assert group.run(lambda context: context.rank) == [0, 1]
        (folder,) = look()[3]
    for wrong, expected in ((fail_on_one, ZeroDivisionError), (die_on_one, WorkerDied)):
        try:
            with pool.lease(small_spec(2)) as group:
                group.run(wrong)
        except expected:
            pass
    pool.end()
    session.shutdown()
    session.shutdown()
    after = look()
    assert after == before, (before, after)
    assert not session.owned()
    session.connect()  # once more, with another token, and left to the end of the program
    assert look()[3] != [folder]
    print("HOME", os.listdir(os.environ["HOME"]))
"""

NOBODY_THERE = """
import socket, time
from cluster import SessionError, session

begun = time.monotonic()
try:
    session.connect()
except SessionError as error:
    print(error)
assert time.monotonic() - begun < 30
"""

ATTACH_AND_LEAVE = """
import os, shutil, tempfile, time
import pytest, ray
from ray.cluster_utils import Cluster
from cluster import PlacementError, WorkerDied, WorkerGroup, session
from tests.cluster.conftest import small_spec

os.environ["RAY_AUTH_MODE"] = "disabled"
folder = tempfile.mkdtemp(dir="/tmp")  # others who look for a cluster on this machine do not find this one
head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1, temp_dir=folder) for _ in range(2)]
os.environ["RAY_ADDRESS"] = cluster.address

session.connect()
assert not session.owned()
deadline = time.monotonic() + 60
while session.may_grow():  # until the cluster has told that no autoscaler belongs to it
    assert time.monotonic() < deadline
    time.sleep(0.2)
with pytest.raises(PlacementError, match="can never hold this group"):
    WorkerGroup.start(small_spec(4, num_nodes=4))

group = WorkerGroup.start(small_spec(4, num_nodes=2))
where = group.run(lambda context: (context.node_id, context.node_rank, context.local_rank, context.num_nodes))
assert len({node for node, *_ in where}) == 2
assert [rest for _, *rest in where] == [[0, 0, 2], [0, 1, 2], [1, 0, 2], [1, 1, 2]]


def wait(context):
    context.emit(context.node_id)
    time.sleep(600)


def lose_a_node(rank, node_id):
    if rank == 3:
        victim = next((node for node in nodes if node.node_id == node_id), None)
        other = next(node for node in nodes if node.node_id in {each for each, *_ in where})
        lost.append((victim or other).node_id)
        cluster.remove_node(victim or other, allow_graceful=False)


lost = []
with pytest.raises(WorkerDied, match="node was lost") as caught:
    group.run(wait, on_event=lose_a_node)
assert where[caught.value.rank][0] == lost[0]
assert not group.alive

session.shutdown()
assert not ray.is_initialized()
del os.environ["RAY_ADDRESS"]
os.environ["RAY_TMPDIR"] = folder
os.mkdir(f"{folder}/ray")
with open(f"{folder}/ray/ray_current_cluster", "w") as note:  # as `ray start` leaves it
    note.write(cluster.address)
session.connect()  # the cluster is still there, and is found
assert not session.owned()
assert any(node["Alive"] for node in ray.nodes())
session.shutdown()

ray.init(cluster.address, log_to_driver=False, configure_logging=False)
session.connect()  # nothing to do, and so nothing to undo
assert not session.owned()
session.shutdown()
assert ray.is_initialized()
ray.shutdown()
cluster.shutdown()
shutil.rmtree(folder)
print("ok")
"""

WRONG_TOKEN = """
import os, shutil, subprocess, sys, tempfile
from ray.cluster_utils import Cluster

folder = tempfile.mkdtemp(dir="/tmp")
head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
cluster = Cluster(initialize_head=True, head_node_args=head)
variables = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
subprocess.run([sys.executable, "-c", os.environ["CHILD"]], env=variables, check=True)
cluster.shutdown()
shutil.rmtree(folder)
"""


def test_a_local_ray_listens_on_loopback_and_leaves_nothing(run_driver: Driver) -> None:
    """After a success, a failure and a death: no variable, thread, process or folder is left, nor in HOME."""
    done = run_driver(LIFE_OF_A_LOCAL_RAY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "HOME []\n"
    assert done.stderr == ""


def test_an_address_without_ray_is_one_clear_error(run_driver: Driver) -> None:
    """A RAY_ADDRESS where nothing listens is named within seconds, with what may be wrong."""
    done = run_driver(NOBODY_THERE, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert "No Ray answers at 127.0.0.1:1" in done.stdout
    assert "RAY_AUTH_MODE" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_addresses_that_cannot_serve_are_refused(run_driver: Driver, address: str) -> None:
    """Client and dashboard addresses are refused with the form that is needed."""
    done = run_driver(NOBODY_THERE, RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    assert f"RAY_ADDRESS={address}" in done.stdout
    assert "host:port" in done.stdout


def test_a_cluster_of_others_is_used_and_left(run_driver: Driver) -> None:
    """Workers spread over its nodes as asked, a lost node is named, and the cluster outlives the session."""
    done = run_driver(ATTACH_AND_LEAVE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok\n")


def test_a_cluster_that_refuses_us_is_one_clear_error(run_driver: Driver) -> None:
    """A cluster that wants a token says so through our error, within seconds."""
    done = run_driver(WRONG_TOKEN, CHILD=NOBODY_THERE, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 32)
    assert done.returncode == 0, done.stderr
    assert "No connection to the Ray at" in done.stdout
    assert "its RAY_AUTH_MODE and token may differ from ours (RAY_AUTH_MODE=disabled)" in done.stdout


def test_a_cluster_of_other_versions_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose Ray or Python is another one is refused with both versions in one line."""
    import ray

    def refuse(**options: object) -> None:
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.51.0\n    Python: 3.12.1\n"
            "This process on 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
        )

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "_answers", lambda address: True)
    with pytest.raises(SessionError) as caught:
        session._attach("10.0.0.9:6379", found=False)
    assert str(caught.value) == (
        "No connection to the Ray at 10.0.0.9:6379: it runs Ray 2.51.0 on Python 3.12.1, this process Ray "
        "2.60.0 on Python 3.11.7. Use the same versions."
    )


def test_node_types_made_up_from_nodes_mean_no_autoscaler() -> None:
    """A cluster whose node types all mirror its nodes cannot grow; any other type says that it may."""
    assert only_mirrors({"ab": "node_ab", "cd": "node_cd"})
    assert not only_mirrors({"ab": "node_ab", "cd": "gpu-workers"})
    assert not only_mirrors({})
