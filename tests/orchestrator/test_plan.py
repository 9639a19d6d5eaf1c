"""Where a call runs: a pure decision over the arguments, this machine's GPUs and a surrounding trial."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.plan import Plan, make_plan
from orchestrator.settings import Settings


def plan(
    *,
    gpus: int = 0,
    scaling_config: Any = None,
    placement_group: Any = None,
    trial_workers: int = 0,
    **arguments: Any,
) -> Plan:
    """The plan of a Trainer with these arguments, on a machine with so many GPUs."""
    return make_plan(
        Settings(**arguments),
        cuda_devices=gpus,
        scaling_config=scaling_config,
        placement_group=placement_group,
        trial_workers=trial_workers,
    )


def scaling(num_workers: Any, use_gpu: bool = False) -> Any:
    """What the plan reads of a ScalingConfig."""
    return SimpleNamespace(num_workers=num_workers, use_gpu=use_gpu)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "Runs in this process on cpu, precision 32-true."),
        ({"gpus": 1}, "Runs in this process on cuda:0, precision 32-true."),
        ({"gpus": 2, "accelerator": "cpu"}, "Runs in this process on cpu, precision 32-true."),
        ({"gpus": 4, "devices": 1}, "Runs in this process on cuda:0, precision 32-true."),
        ({"precision": "bf16-mixed"}, "Runs in this process on cpu, precision bf16-mixed."),
        ({"strategy": "ddp"}, "Runs in this process on cpu, precision 32-true."),
        (
            {"devices": 2},
            "Runs on 2 Ray workers, on CPUs: strategy ddp over gloo, precision 32-true.",
        ),
        (
            {"gpus": 4},
            "Runs on 4 Ray workers, one GPU each: strategy ddp over nccl, precision 32-true.",
        ),
        (
            {"devices": 3, "num_nodes": 2},
            "Runs on 6 Ray workers on 2 nodes, on CPUs: strategy ddp over gloo, precision 32-true.",
        ),
        (
            {"num_nodes": 2},
            "Runs on 2 Ray workers on 2 nodes, on CPUs: strategy ddp over gloo, precision 32-true.",
        ),
        (
            {"accelerator": "gpu", "devices": 2},
            "Runs on 2 Ray workers, one GPU each: strategy ddp over nccl, precision 32-true.",
        ),
        (
            {"scaling_config": scaling(1)},
            "Runs on 1 Ray worker, on CPUs: strategy single over gloo, precision 32-true.",
        ),
        (
            {"scaling_config": scaling(3, use_gpu=True)},
            "Runs on 3 Ray workers, one GPU each: strategy ddp over nccl, precision 32-true.",
        ),
        (
            {"scaling_config": scaling(4), "devices": 4},
            "Runs on 4 Ray workers, on CPUs: strategy ddp over gloo, precision 32-true.",
        ),
        (
            {"placement_group": object()},
            "Runs on 1 Ray worker, on CPUs: strategy single over gloo, precision 32-true.",
        ),
        (
            {"trial_workers": 2},
            "Runs on 2 Ray workers, on CPUs: strategy ddp over gloo, precision 32-true.",
        ),
        ({"trial_workers": 2, "devices": 1}, "Runs in this process on cpu, precision 32-true."),
    ],
)
def test_the_plan_says_where_it_runs(arguments: dict[str, Any], expected: str) -> None:
    """One line names the place, the number of workers, their devices, the backend and the precision."""
    assert plan(**arguments).describe() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accelerator": "gpu"}, r"Trainer\(accelerator='gpu'\): torch sees no GPU.*Use accelerator='cpu'"),
        ({"devices": 2, "strategy": "single"}, r"strategy='single'\) runs one process, and 2 workers"),
        (
            {"scaling_config": scaling(3), "devices": 2},
            r"devices=2, num_nodes=1\) asks for 2 workers.* for 3",
        ),
        ({"scaling_config": scaling(2), "num_nodes": 2}, r"num_nodes=2\) and scaling_config both"),
        (
            {"scaling_config": scaling(2, use_gpu=True), "accelerator": "cpu"},
            r"accelerator='cpu'\) contradicts scaling_config's use_gpu=True",
        ),
        (
            {"scaling_config": scaling(2), "accelerator": "gpu"},
            r"accelerator='gpu'\) contradicts scaling_config's use_gpu=False",
        ),
        ({"scaling_config": scaling((1, 4))}, r"num_workers=\(1, 4\)\. Use one whole number"),
        ({"scaling_config": scaling(True)}, r"num_workers=True\. Use one whole number"),
        ({"scaling_config": scaling(0)}, r"num_workers=0\. Use one whole number"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Arguments that exclude each other are an error that names both, before anything starts."""
    with pytest.raises(MisconfigurationError, match=message):
        plan(**arguments)


@given(
    st.sampled_from(["auto", "cpu"]),
    st.one_of(st.just("auto"), st.integers(1, 64)),
    st.integers(1, 8),
    st.integers(0, 8),
)
def test_a_plan_is_whole(accelerator: str, devices: Any, num_nodes: int, gpus: int) -> None:
    """Several workers run on a group with a backend that fits their devices; one runs here, without Ray."""
    found = plan(accelerator=accelerator, devices=devices, num_nodes=num_nodes, gpus=gpus)
    assert found.num_workers % num_nodes == 0
    assert found.on_group == (found.num_workers > 1)
    assert (found.strategy == "ddp") == (found.num_workers > 1)
    assert found.backend == ("" if not found.on_group else "nccl" if found.use_gpu else "gloo")
    assert found.device == ("cuda:0" if found.use_gpu and not found.on_group else "cpu")
    assert found.use_gpu == (accelerator == "auto" and gpus > 0)
    assert found.num_nodes == (num_nodes if num_nodes > 1 else None)


def test_the_environment_does_not_move_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_ADDRESS alone changes nothing for one worker."""
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    assert not pl.Trainer(accelerator="cpu", logger=False).plan.on_group
