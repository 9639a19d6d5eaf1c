"""The doctor on three nodes: healthy ones are left alone, and every fault that is planted is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.version

from tests.cluster.conftest import ROOT
from tests.netlab import NetLab, missing

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=f"needs network namespaces: {missing()}"),
]

_DOCTOR = "import sys; from orchestrator.cli import main; sys.exit(main(['doctor', *sys.argv[1:]]))"
_LATE_S = 90.0
_CLOCK = f"import time\n_time = time.time\ntime.time = lambda: _time() + {_LATE_S}\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the first two nodes share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def lab(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetLab]:
    """Two healthy nodes, and one that is ill in every way that shows on itself."""
    ill = tmp_path_factory.mktemp("ill")
    version = Path(torch.version.__file__)
    public = torch.__version__.partition("+")[0]
    (ill / "version.py").write_text(version.read_text(encoding="utf-8").replace(public, "2.1.7"))
    (ill / "sitecustomize.py").write_text(_CLOCK, encoding="utf-8")
    prepare = f"""
        ip link show aaa0 || ip link add aaa0 type veth peer name aaa1
        ip addr replace 192.0.2.5/24 dev aaa0
        ip link set aaa0 up
        ip link set aaa1 up
        export GLOO_SOCKET_IFNAME=aaa0
        export PYTHONPATH={ill}
        mount --bind {ill}/version.py {version}
        mount -t tmpfs none {shared}
        mount -t tmpfs -o size=64m none /dev/shm
        ulimit -n 2048
    """
    with NetLab(1, prepare={2: prepare}) as lab:
        for _ in range(2):
            lab.add_node()
        yield lab


def examine(lab: NetLab, *arguments: str) -> tuple[int, dict[str, Any]]:
    """What the command on the head says: its exit status, and its JSON."""
    process = lab.popen(
        0,
        [sys.executable, "-c", _DOCTOR, "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT)},
    )
    output, log = process.communicate(timeout=300)
    assert output, log
    return process.returncode, json.loads(output)


def test_healthy_nodes_have_no_findings(lab: NetLab, shared: Path) -> None:
    """Of two nodes that are as they should be all is looked at, and nothing is said."""
    nodes = [lab.ip(0), lab.ip(1)]
    status, found = examine(lab, "--nodes", ",".join(nodes), "--storage", str(shared), "--strict")
    assert found["findings"] == []
    assert status == 0
    assert [node["address"] for node in found["nodes"]] == nodes
    assert {(link["source"], link["target"]) for link in found["links"]} == {tuple(nodes), tuple(nodes[::-1])}
    assert all(link["bytes_per_s"] > 0 and link["latency_s"] > 0 for link in found["links"])
    assert found["all_reduce"]["seconds"] > 0
    assert found["storage"]["nodes"] == [[address, None] for address in nodes]
    assert list(shared.iterdir()) == []


def test_every_fault_is_named_with_its_node_and_cause(lab: NetLab, shared: Path) -> None:
    """A wrong interface, other versions, a wrong clock, a small /dev/shm, a low limit of files, a disk of its
    own, closed ports, a slow link and an absent node are each one finding, and there are no others.
    """
    lab.close_ports(1)
    lab.throttle(1, 20.0)
    status, found = examine(
        lab, "--nodes", ",".join([*map(lab.ip, range(3)), "10.77.0.99"]), "--storage", str(shared)
    )
    assert status == 1
    causes = {(item["check"], item["node"]): item["cause"] for item in found["findings"]}
    expected = {
        ("node", "10.77.0.99"): "it is not a node of the cluster at",
        ("versions", lab.ip(2)): "torch 2.1.7 instead of",
        ("interface", lab.ip(2)): "the other nodes are reached by eth0, not by aaa0 (192.0.2.5)",
        ("ports", lab.ip(1)): "while Ray's own port there answers: something between them lets only some",
        ("shm", lab.ip(2)): "64 MiB free of 64 MiB",
        ("storage", lab.ip(2)): "it is another disk than the driver's",
        ("clock", lab.ip(2)): "its clock is 90.0 s ahead",
        ("bandwidth", lab.ip(1)): "what it sends goes at ",
        ("files", lab.ip(2)): "2048 files and connections",
    }
    assert causes.keys() == expected.keys()
    assert [text for key, text in expected.items() if text not in causes[key]] == []
    assert len(found["findings"]) == len(causes)
