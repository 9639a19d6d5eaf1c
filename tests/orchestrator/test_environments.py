"""Processes that torchrun or srun started are recognised by their environment, and by nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.environments import SLURMEnvironment, TorchElasticEnvironment, check, find, first_node
from orchestrator.errors import MisconfigurationError
from orchestrator.plan import make_plan
from orchestrator.settings import Settings
from orchestrator.strategies import FSDPStrategy
from tests.orchestrator.groups import Net, group_trainer, loader

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, ("torchrun", 5, 8, 1, 4, 1, 2, "10.0.0.1", 29500)),
        (SRUN, ("srun", 5, 8, 1, 4, 1, 2, "gpu07", 18456)),
        ({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "1234"}, ("srun", 5, 8, 1, 4, 1, 2, "head", 1234)),
        ({**SRUN, **TORCHRUN}, ("torchrun", 5, 8, 1, 4, 1, 2, "10.0.0.1", 29500)),
    ],
)
def test_a_launched_process_knows_its_place(environ: dict[str, str], expected: tuple[Any, ...]) -> None:
    """Rank, node and address come from the launcher; torchrun within a job step is the nearer one."""
    found = find(environ)
    assert found is not None
    assert expected == (
        found.launcher,
        found.rank,
        found.world_size,
        found.local_rank,
        found.local_world_size,
        found.node_rank,
        found.num_nodes,
        found.address,
        found.port,
    )


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"},
    ],
    ids=["nothing", "variables alone", "a batch script", "one of torchrun", "one task"],
)
def test_other_processes_run_as_always(environ: dict[str, str]) -> None:
    """Variables that anybody may set, a batch script's own process, and a single process mean nothing."""
    assert find(environ) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("n[001-004]", "n001"),
        ("n[3,7-9]x,m1", "n3x"),
        ("rack1-n[2],rack2-n1", "rack1-n2"),
    ],
)
def test_the_first_node_of_slurms_short_form(names: str, expected: str) -> None:
    """Ranges, lists, and names after the bracket."""
    assert first_node(names) == expected


@pytest.mark.parametrize(
    ("environ", "insisted", "message"),
    [
        (
            {},
            TorchElasticEnvironment(),
            r"plugins=\[TorchElasticEnvironment\(\)\]\): torchrun did not start this",
        ),
        (TORCHRUN, SLURMEnvironment(), r"srun did not start this process"),
        ({"TORCHELASTIC_RUN_ID": "1"}, None, r"torchrun started this process, but .*'RANK'"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "x"}, None, r"srun started this process, but .*'x'"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "7"}, None, r"7 tasks on 2 nodes.*--ntasks-per-node"),
    ],
)
def test_an_environment_that_is_not_whole_is_refused(environ: Any, insisted: Any, message: str) -> None:
    """What was insisted on must be there, and what is there must be whole."""
    with pytest.raises(MisconfigurationError, match=message):
        find(environ, insisted)


@pytest.mark.parametrize(("devices", "num_nodes"), [("auto", 1), ("auto", 2), (4, 2), ((0, 1, 2, 3), 2)])
def test_arguments_that_agree_are_accepted(devices: Any, num_nodes: int) -> None:
    """Left open, or exactly what was started."""
    launched = find(TORCHRUN)
    assert launched is not None
    check(launched, devices, num_nodes)


@pytest.mark.parametrize(("devices", "num_nodes"), [(4, 1), (8, 1), (2, 2), (1, 1), ("auto", 3), ((0,), 2)])
def test_arguments_that_contradict_are_refused(devices: Any, num_nodes: int) -> None:
    """The error gives both numbers, and what to write."""
    launched = find(SRUN)
    assert launched is not None
    with pytest.raises(
        MisconfigurationError, match=r"srun started 8, 4 on each of 2\. Use devices=4, num_nodes=2"
    ):
        check(launched, devices, num_nodes)


def test_the_plan_of_a_launched_process() -> None:
    """It stays where it is, uses its node's GPU of its number, and takes no Ray."""
    launched = find(TORCHRUN)
    found = make_plan(Settings(), cuda_devices=4, launched=launched)
    assert (found.on_group, found.num_workers, found.num_nodes, found.device) == (False, 8, 2, "cuda:1")
    assert found.describe() == (
        "Runs in the 8 processes that torchrun started, rank 0 on cuda:1: strategy ddp over nccl, "
        "precision 32-true."
    )
    cpu = make_plan(
        Settings(accelerator="cpu", strategy="fsdp", strategy_spec=FSDPStrategy()),
        cuda_devices=4,
        launched=launched,
    )
    assert (cpu.device, cpu.strategy, cpu.backend) == ("cpu", "fsdp", "gloo")
    with pytest.raises(MisconfigurationError, match="torch sees 1 GPUs, and each needs its own"):
        make_plan(Settings(), cuda_devices=1, launched=launched)
    with pytest.raises(
        MisconfigurationError, match=r"strategy='single'\) runs one process, and torchrun started 8"
    ):
        make_plan(Settings(strategy="single"), cuda_devices=0, launched=launched)


SCRIPT = """
import sys
from pathlib import Path

import torch

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from tests.orchestrator.groups import Net, loader

torch.set_num_threads(1)
root, strategy = Path(sys.argv[1]), sys.argv[2]
pl.seed_everything(7)
module = Net()
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy=strategy, max_epochs=2, enable_progress_bar=False,
    default_root_dir=root,
)
rank = trainer.global_rank
torch.manual_seed(100 + rank)  # processes that started apart
if rank:
    torch.nn.init.zeros_(module.net[0].weight)
trainer.fit(module, loader(36, batch_size=4, shuffle=True), loader(20, batch_size=3))
metrics = trainer.validate(module, loader(20, batch_size=3), verbose=False)
outputs = torch.cat(trainer.predict(module, loader(20, batch_size=3)))
torch.save((module.state_dict(), metrics, outputs, trainer.log_dir), root / f"rank{rank}.pt")
"""


@pytest.mark.ray
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_torchrun_is_bit_equal_to_a_group(
    tmp_path: Path, strategy: str, request: pytest.FixtureRequest
) -> None:
    """Two processes of torchrun begin alike, end with the weights of two Ray workers to the bit, and hold all
    results both.
    """
    (tmp_path / "train.py").write_text(SCRIPT)
    root = request.config.rootpath
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
            *(str(tmp_path / "train.py"), str(tmp_path), strategy),
        ],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Runs in the 2 processes that torchrun started") == 3
    pl.seed_everything(7, verbose=False)
    module = Net()
    torch.manual_seed(100)
    trainer = group_trainer(tmp_path, strategy=strategy)
    trainer.fit(module, loader(36, batch_size=4, shuffle=True), loader(20, batch_size=3))
    expected = torch.cat(trainer.predict(module, loader(20, batch_size=3)))
    for rank in range(2):
        weights, metrics, outputs, log_dir = torch.load(tmp_path / f"rank{rank}.pt")
        for name, value in module.state_dict().items():
            assert torch.equal(weights[name], value), name
        assert metrics == trainer.validate(module, loader(20, batch_size=3), verbose=False)
        assert torch.equal(outputs, expected)
        assert log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert os.listdir(tmp_path / "lightning_logs") == ["version_0"]
