"""Where a call runs: a pure decision over the arguments, this machine's GPUs and a surrounding trial."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.train import ScalingConfig

import orchestrator as pl
from cluster.spec import GroupSpec
from orchestrator.errors import MisconfigurationError
from orchestrator.plan import Plan, make_plan
from orchestrator.settings import Settings


@dataclass
class Trial:
    """What a plan sees of a sweep's trial."""

    num_workers: int
    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})

    def group_spec(self, num_workers: int, **options: Any) -> GroupSpec:
        return GroupSpec.create(num_workers, resources_per_worker=self.resources, **options)


def plan(
    *,
    gpus: int = 0,
    scaling_config: Any = None,
    placement_group: Any = None,
    trial: Trial | None = None,
    **arguments: Any,
) -> Plan:
    """The plan of a Trainer with these arguments, on a machine with so many GPUs."""
    return make_plan(
        Settings(**arguments),
        cuda_devices=gpus,
        scaling_config=scaling_config,
        placement_group=placement_group,
        reservation=trial,
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
            {
                "scaling_config": ScalingConfig(
                    num_workers=2, placement_strategy="SPREAD", label_selector={"zone": "in(a, b)"}
                ),
                "spares": 1,
            },
            "Runs on 2 Ray workers, on CPUs, placed by SPREAD, on nodes with zone=in(a, b), 1 spare standing "
            "by: strategy ddp over gloo, precision 32-true.",
        ),
        (
            {"placement_group": object()},
            "Runs on 1 Ray worker, on CPUs: strategy single over gloo, precision 32-true.",
        ),
        (
            {"trial": Trial(2)},
            "Runs on 2 Ray workers, on CPUs: strategy ddp over gloo, precision 32-true.",
        ),
        ({"trial": Trial(2), "devices": 1}, "Runs in this process on cpu, precision 32-true."),
        ({"trial": Trial(0)}, "Runs in this process on cpu, precision 32-true."),
        (
            {"trial": Trial(2, {"CPU": 1.0, "GPU": 1.0})},
            "Runs on 2 Ray workers, one GPU each: strategy ddp over nccl, precision 32-true.",
        ),
        (
            {"devices": 2, "resources_per_worker": (("GPU", 1.0),)},
            "Runs on 2 Ray workers, one GPU each: strategy ddp over nccl, precision 32-true.",
        ),
        (
            {"devices": 2, "resources_per_worker": (("CPU", 1.0), ("GPU", 0.5))},
            "Runs on 2 Ray workers, 0.5 GPU each: strategy ddp over gloo, precision 32-true.",
        ),
        (
            {"gpus": 8, "devices": 2, "resources_per_worker": (("GPU", 2.0),)},
            "Runs on 2 Ray workers, 2 GPUs each: strategy ddp over nccl, precision 32-true.",
        ),
        (
            {"gpus": 2, "resources_per_worker": (("CPU", 2.0),)},
            "Runs on 2 Ray workers, one GPU each: strategy ddp over nccl, precision 32-true.",
        ),
        (
            {"gpus": 2, "devices": 2, "resources_per_worker": (("CPU", 2.0), ("GPU", 0.0))},
            "Runs on 2 Ray workers, on CPUs: strategy ddp over gloo, precision 32-true.",
        ),
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
        (
            {"scaling_config": scaling(2), "resources_per_worker": (("CPU", 2.0),)},
            r"resources_per_worker=\{'CPU': 2\.0\}\) and scaling_config both say .* Leave it out",
        ),
        (
            {"devices": 2, "accelerator": "cpu", "resources_per_worker": (("GPU", 1.0),)},
            r"accelerator='cpu'\) contradicts workers that have 1 GPUs each",
        ),
        (
            {"trial": Trial(2), "accelerator": "gpu"},
            r"accelerator='gpu'\) contradicts workers that have 0 GPUs each",
        ),
        (
            {"devices": 2, "accelerator": "gpu", "resources_per_worker": (("GPU", 0.0),)},
            r"impossible group: use_gpu=True contradicts resources_per_worker\['GPU'\]=0",
        ),
        (
            {"devices": 2, "resources_per_worker": (("GPU", 1.5),)},
            r"impossible group: resources_per_worker\['GPU'\]=1\.5 is refused by Ray.* Use 2",
        ),
        ({"spares": 1}, r"spares=1\): spares stand by .* stays in this process"),
        (
            {"scaling_config": ScalingConfig(num_workers=2, label_selector={"zone": "a b"})},
            r"impossible group: label_selector\['zone'\]='a b' is not a condition",
        ),
        (
            {
                "scaling_config": ScalingConfig(num_workers=2, label_selector={"zone": "a"}),
                "placement_group": object(),
            },
            r"impossible group: label_selector contradicts a placement_group",
        ),
        (
            {"devices": 1, "resources_per_worker": (("GPU", 1.0),)},
            r"resources_per_worker=\{'GPU': 1\.0\}\): torch sees no GPU.*Use accelerator='cpu'",
        ),
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


@given(
    st.sampled_from(["auto", "cpu", "gpu"]),
    st.integers(2, 4),
    st.integers(0, 2),
    st.none() | st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.sampled_from([0.0, 0.5, 1.0, 2.0])),
)
def test_the_plan_says_what_the_group_is(
    accelerator: str, devices: int, gpus: int, resources: dict[str, float] | None
) -> None:
    """Workers, devices and backend of the plan are those of the spec that the group is started with."""
    given_resources = None if resources is None else tuple(sorted(resources.items()))
    try:
        found = plan(
            accelerator=accelerator, devices=devices, gpus=gpus, resources_per_worker=given_resources
        )
    except MisconfigurationError:
        return
    assert found.group is not None
    amount = found.group.resource("GPU")
    assert (found.num_workers, found.backend) == (found.group.num_workers, found.group.backend)
    assert found.use_gpu == (amount > 0)
    assert found.backend == ("nccl" if amount >= 1 else "gloo")
    assert found.use_gpu or accelerator != "gpu"
    assert not (found.use_gpu and accelerator == "cpu")


@pytest.mark.parametrize(
    "where",
    [{}, {"scaling_config": scaling(2)}, {"placement_group": object()}, {"trial": Trial(2)}],
    ids=["devices", "scaling_config", "placement_group", "trial"],
)
def test_timeouts_and_threads_reach_the_group(where: dict[str, Any]) -> None:
    """What the Trainer says about waiting and threads holds wherever the workers come from."""
    group = plan(
        devices=2, start_timeout_s=7.0, collective_timeout_s=4000.0, threads_per_worker=3, **where
    ).group
    assert group is not None
    assert (group.start_timeout_s, group.collective_timeout_s, group.threads) == (7.0, 4000.0, 3)
    assert group.placement_group is where.get("placement_group")


def test_collectives_wait_as_long_as_in_torch() -> None:
    """Ranks that wait for another's download wait half an hour, unless told otherwise."""
    assert GroupSpec(num_workers=2).collective_timeout_s == 1800.0
    found = pl.Trainer(accelerator="cpu", devices=2, logger=False).plan.group
    assert found is not None and replace(found, preload=()) == GroupSpec(num_workers=2)


def test_the_group_stays_with_the_driver() -> None:
    """A trainer that travels to workers knows the plan, but not what only the driver can use."""
    trainer = pl.Trainer(accelerator="cpu", devices=2, logger=False)
    copy = pickle.loads(pickle.dumps(trainer))
    assert copy.plan.group is None
    assert (copy.plan.num_workers, copy.world_size) == (2, 2)
