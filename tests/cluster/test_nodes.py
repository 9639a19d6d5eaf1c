"""Gangs on nodes with addresses, disks and installations of their own: placed, ranked, checked, supplied."""

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
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=f"needs network namespaces: {missing()}"),
]

_SHUFFLED = "3,1,0,2"
_THINGS = """
import os

import torch

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        import imported_late

        if batch_idx == 0:
            self.seen = self.trainer.strategy.gather(
                [imported_late.__file__, os.environ.get("WANDB_MODE"), os.getcwd()]
            )
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""
_TRAIN = """
import json, os, sys
from ray.train import ScalingConfig
import torch, things
import orchestrator as pl

def fit(selector, ckpt_path=None, **options):
    module = things.Net()
    trainer = pl.Trainer(
        max_epochs=1, enable_progress_bar=False, enable_model_summary=False, logger=False,
        scaling_config=ScalingConfig(num_workers=len(selector), label_selector=selector,
                                     resources_per_worker={"CPU": 0.5}),
        **options,
    )
    try:
        trainer.fit(module, torch.utils.data.DataLoader(torch.ones(4, 2)), ckpt_path=ckpt_path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [module.seen, trainer.checkpoint_callback and trainer.checkpoint_callback.best_model_path]

both = [{"zone": "head"}, {"zone": "b"}]
found = {"first": fit(both)}
found["elsewhere"] = fit(both[1:])
found["resumed"] = fit(both, ckpt_path=found["first"][1])
print(json.dumps(found))
"""
_GANG = """
import json, os, sys
from cluster import ClusterError, GroupSpec, WorkerGroup, session

session.connect()

def know(context):
    names = ("CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RANK", "LOCAL_RANK",
             "WORLD_SIZE", "OMP_NUM_THREADS")
    import torch.distributed as dist
    number = __import__("torch").ones(1)
    dist.all_reduce(number)
    return {**{name: os.environ.get(name) for name in names}, "ip": context.node_ip,
            "device": context.device, "sum": int(number), "node_rank": context.node_rank}

found = []
for number, options in json.loads(sys.argv[1]):
    try:
        group = WorkerGroup.start(GroupSpec.create(number, start_timeout_s=150, **options))
    except ClusterError as error:
        found.append(f"{type(error).__name__}: {error}")
        continue
    found.append(group.run(know))
    group.shutdown()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a script and the modules beside it."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "things.py").write_text(_THINGS, encoding="utf-8")
    (folder / "imported_late.py").write_text("", encoding="utf-8")
    (folder / "train.py").write_text(_TRAIN, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lab(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetLab]:
    """Four nodes: the head, one with GPUs and two interfaces, one with a disk of its own, one that is old."""
    old = tmp_path_factory.mktemp("old")
    version, errors = Path(torch.version.__file__), ROOT / "cluster" / "errors.py"
    text = version.read_text(encoding="utf-8")
    public = torch.__version__.partition("+")[0]
    (old / "version.py").write_text(text.replace(public, "2.1.7"), encoding="utf-8")
    (old / "errors.py").write_text(errors.read_text(encoding="utf-8") + "\n# older\n", encoding="utf-8")
    prepare = {
        1: (
            f"export CUDA_VISIBLE_DEVICES={_SHUFFLED}\n"
            "ip link show aaa0 || ip link add aaa0 type veth peer name aaa1\n"
            "ip addr replace 192.0.2.5/24 dev aaa0\nip link set aaa0 up"
        ),
        2: f"mount -t tmpfs none {job}",
        3: f"mount --bind {old}/version.py {version}\nmount --bind {old}/errors.py {errors}",
    }
    zones = {0: "head", 1: "a", 2: "b", 3: "old"}
    lab = NetLab(1, gpus=4, labels={node: {"zone": zone} for node, zone in zones.items()}, prepare=prepare)
    with lab:
        for _ in range(3):  # one after the other: together they take longer on a busy machine
            lab.add_node()
        yield lab


def start(lab: NetLab, *gangs: tuple[int, dict[str, Any]], node: int = 0) -> list[Any]:
    """What the workers of each gang know, or the error, from a driver on a node."""
    return json.loads(lab.python(node, _GANG, json.dumps(gangs)).splitlines()[-1])  # type: ignore[no-any-return]


def test_gangs_go_where_labels_and_strategies_say(lab: NetLab) -> None:
    """Each worker is on a node that it may be on, ranks nest in nodes, and collectives work over them."""
    half = {"resources_per_worker": {"CPU": 0.5}}
    spread, pinned, packed = start(
        lab,
        (3, {**half, "label_selector": {"zone": "!old"}, "placement_strategy": "STRICT_SPREAD"}),
        (3, {**half, "label_selector": [{"zone": "b"}, {"zone": "a"}, {"zone": "b"}]}),
        (3, {**half, "label_selector": {"zone": "in(a, b)"}, "placement_strategy": "STRICT_PACK"}),
    )
    assert [each["ip"] for each in spread] == [lab.ip(0), lab.ip(1), lab.ip(2)]
    assert [each["ip"] for each in pinned] == [lab.ip(1), lab.ip(2), lab.ip(2)]
    assert [each["LOCAL_RANK"] for each in pinned] == ["0", "0", "1"]
    assert [each["node_rank"] for each in pinned] == [0, 1, 1]
    assert len({each["ip"] for each in packed}) == 1
    for gang in (spread, pinned, packed):
        assert [(each["RANK"], each["sum"]) for each in gang] == [(str(rank), 3) for rank in range(3)]


def test_devices_are_those_that_ray_assigned(lab: NetLab) -> None:
    """Workers of a node share its list of GPUs and use their own of it, though CUDA_VISIBLE_DEVICES is
    shuffled; a worker without GPUs computes on the CPU; threads are the reserved CPUs.
    """
    there = {"label_selector": {"zone": "a"}, "backend": "gloo"}
    two, one, none = start(
        lab,
        (2, {**there, "resources_per_worker": {"CPU": 1, "GPU": 2}}),
        (1, {**there, "resources_per_worker": {"CPU": 2, "GPU": 1}}),
        (1, {**there, "resources_per_worker": {"CPU": 0.5}}),
    )
    assert [each["CUDA_VISIBLE_DEVICES"] for each in two] == ["0,1,2,3"] * 2
    assert sorted(each["device"] for each in two) == sorted(_devices_of_pairs(_SHUFFLED))
    assert one[0]["CUDA_VISIBLE_DEVICES"] in _SHUFFLED.split(",")
    assert (one[0]["device"], one[0]["OMP_NUM_THREADS"]) == ("cuda:0", "2")
    assert (none[0]["device"], none[0]["OMP_NUM_THREADS"]) == ("cpu", "1")


def _devices_of_pairs(visible: str) -> list[str]:
    """The first device of each half of a node's GPUs, counted in their sorted order."""
    ids = visible.split(",")
    return [f"cuda:{min(int(gpu) for gpu in half)}" for half in (ids[:2], ids[2:])]


def test_the_interface_is_the_one_that_leads_to_the_peers(lab: NetLab) -> None:
    """Of two interfaces Gloo and NCCL get the one with the route to the other nodes."""
    (gang,) = start(lab, (2, {"label_selector": [{"zone": "a"}, {"zone": "b"}]}))
    assert {each["GLOO_SOCKET_IFNAME"] for each in gang} == {"eth0"}
    assert {each["NCCL_SOCKET_IFNAME"] for each in gang} == {"eth0"}


def test_nodes_with_other_versions_are_named(lab: NetLab) -> None:
    """Another torch and another copy of this project are refused, with the node and both versions."""
    (error,) = start(lab, (2, {"label_selector": [{"zone": "head"}, {"zone": "old"}]}))
    assert error.startswith("StartError: 1 of 2 nodes have other versions than this process:\n")
    assert f"node {lab.ip(3)}: torch 2.1.7 instead of {torch.__version__.partition('+')[0]}" in error
    assert f"other source of this project (in {ROOT}" in error


def test_a_gang_that_cannot_fit_is_refused_with_the_arithmetic(lab: NetLab) -> None:
    """Labels, sizes and spares that no set of nodes can serve are refused at once, node by node."""
    nowhere, large, spares = start(
        lab,
        (2, {"label_selector": {"zone": "c"}}),
        (2, {"label_selector": {"zone": "a"}, "resources_per_worker": {"CPU": 2}}),
        (2, {"label_selector": {"zone": "a"}, "spares": 1}),
    )
    assert "all on nodes with zone=c" in nowhere
    assert f"node {lab.ip(1)}: {{CPU: 2}}" in nowhere
    assert "zone=a: not wanted" in nowhere
    assert nowhere.startswith("PlacementError: The cluster can never hold this group")
    assert large.startswith("PlacementError: The cluster can never hold this group: asked 2 x {CPU: 2}")
    assert spares.startswith("PlacementError: The cluster can hold this group but not its spares")


def test_modules_variables_and_files_reach_every_node(lab: NetLab, job: Path) -> None:
    """Modules beside the script run on a node without them, and loggers' variables are there; a folder that
    rank 0 would write on another disk, or a checkpoint that a rank cannot read, is refused before training.
    """
    process = lab.popen(
        0,
        [sys.executable, "train.py"],
        cwd=job,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)},
    )
    output, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    found = json.loads(output.splitlines()[-1])
    (here, there), checkpoint = found["first"]
    assert here == [str(job / "imported_late.py"), "offline", str(job)]
    assert there[0].endswith("imported_late.py")
    assert there[0] != here[0]
    assert there[1:] == ["offline", str(job)]
    assert Path(checkpoint).is_relative_to(job)
    assert Path(checkpoint).is_file()
    assert f"3 source files ({_kilobytes(job)} kB) of {job} sent to node {lab.ip(2)} in " in log
    assert "Environment variables sent to the workers: WANDB_MODE." in log, log
    assert f"not shared with node {lab.ip(2)}" in log
    assert found["elsewhere"].startswith("MisconfigurationError: Checkpoints and logs go to ")
    assert f"rank 0 on node {lab.ip(2)} would write them: there, it is another disk" in found["elsewhere"]
    assert f"the file is not on node {lab.ip(2)}" in found["resumed"]


def _kilobytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.glob('*.py')) / 1000:.1f}"


@pytest.mark.slow
def test_a_link_that_works_in_one_direction_is_named(lab: NetLab) -> None:
    """A node whose packets to a peer vanish is named with that peer, in seconds; afterwards all is well."""
    gang = (2, {"label_selector": [{"zone": "a"}, {"zone": "b"}]})
    lab.block_one_way(1, 2)
    try:
        (error,) = start(lab, gang)
    finally:
        lab.unblock(1, 2)
    assert error.startswith("StartError: 2 links between the nodes of this group do not work:\n")
    assert f"node {lab.ip(1)} does not reach node {lab.ip(2)}: no answer" in error
    assert f"node {lab.ip(2)} does not reach node {lab.ip(1)}: no answer" in error
    assert start(lab, gang)[0][0]["sum"] == 2
