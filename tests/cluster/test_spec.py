"""What may be asked for: `GroupSpec`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig

from cluster import GroupSpec, SpecError


def test_default_is_one_cpu_over_gloo() -> None:
    """Without more, a worker reserves one CPU and talks Gloo."""
    spec = GroupSpec.create(2)
    assert spec.resources_per_worker == (("CPU", 1.0),)
    assert spec.backend == "gloo"


def test_gpus_bring_nccl() -> None:
    """A whole GPU per worker makes NCCL the default; a fraction of one does not."""
    assert GroupSpec.create(2, use_gpu=True).backend == "nccl"
    assert GroupSpec.create(2, resources_per_worker={"CPU": 1, "GPU": 0.5}).backend == "gloo"


def test_equal_needs_make_equal_specs() -> None:
    """Order and number type of the mappings make no difference, so the pool can reuse a group."""
    one = GroupSpec.create(2, resources_per_worker={"CPU": 1, "x": 2}, env={"A": "1", "B": "2"})
    two = GroupSpec.create(2, resources_per_worker={"x": 2.0, "CPU": 1.0}, env={"B": "2", "A": "1"})
    assert one == two
    assert hash(one) == hash(two)


def test_an_amount_of_zero_is_left_out() -> None:
    """{"GPU": 0} asks for no GPU."""
    assert GroupSpec.create(1, resources_per_worker={"CPU": 1, "GPU": 0}).resources_per_worker == (
        ("CPU", 1.0),
    )


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (2.7, 2), (4, 4)])
def test_threads_follow_the_reservation(cpus: float, threads: int) -> None:
    """Threads are the CPUs rounded down, at least one."""
    assert GroupSpec.create(1, resources_per_worker={"CPU": cpus}).worker_threads == threads


def test_given_threads_win() -> None:
    """A number of threads that is given is taken."""
    assert GroupSpec.create(1, threads=3).worker_threads == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_workers": 0}, "num_workers=0"),
        ({"num_workers": True}, "num_workers=True"),
        ({"num_workers": 3, "num_nodes": 2}, "num_workers=3 .* num_nodes=2"),
        ({"num_workers": 4, "num_nodes": 2, "placement_strategy": "STRICT_PACK"}, "num_nodes=2 contradicts"),
        ({"num_workers": 4, "num_nodes": 2, "placement_strategy": "STRICT_SPREAD"}, "STRICT_SPREAD"),
        ({"num_workers": 1, "placement_strategy": "PAKC"}, "placement_strategy='PAKC'"),
        ({"num_workers": 1, "backend": "mpi"}, "backend='mpi'"),
        ({"num_workers": 1, "backend": "nccl"}, "0 GPU per worker"),
        ({"num_workers": 1, "threads": 0}, "threads=0"),
        ({"num_workers": 1, "start_timeout_s": 0}, "start_timeout_s=0"),
        ({"num_workers": 1, "collective_timeout_s": float("inf")}, "collective_timeout_s=inf"),
        ({"num_workers": 1, "resources_per_worker": {}}, "resources_per_worker is empty"),
        ({"num_workers": 1, "resources_per_worker": {"CPU": -1}}, r"resources_per_worker\['CPU'\]=-1"),
        ({"num_workers": 1, "resources_per_worker": {"CPU": "two"}}, "'two'"),
        ({"num_workers": 1, "resources_per_worker": {"CPU": 0.00001}}, "smallest amount"),
        ({"num_workers": 1, "resources_per_worker": {"GPU": 1.5}}, "Use 2"),
        ({"num_workers": 1, "use_gpu": True, "resources_per_worker": {"GPU": 0}}, "use_gpu=True contradicts"),
        ({"num_workers": 2, "label_selector": [{"a": "b"}]}, "1 selectors for 2 workers"),
        ({"num_workers": 1, "label_selector": "zone=a"}, "label_selector='zone=a'"),
        ({"num_workers": 1, "label_selector": {"zone": "in()"}}, r"label_selector\['zone'\]='in\(\)'"),
        ({"num_workers": 1, "label_selector": {"-": "a"}}, "the label '-'"),
        ({"num_workers": 2, "label_selector": [{"a": "b"}, {}], "spares": 1}, "contradicts spares=1"),
        ({"num_workers": 2, "label_selector": [{"a": "b"}, {}], "num_nodes": 2}, "contradicts num_nodes=2"),
        ({"num_workers": 1, "label_selector": {"a": "b"}, "placement_group": 1}, "contradicts a placement"),
        ({"num_workers": 1, "colour": "red"}, "no field colour"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    """Each impossible value is refused with the value and its name, before anything starts."""
    with pytest.raises(SpecError, match=named):
        GroupSpec.create(**options)


def test_a_spec_error_is_a_value_error() -> None:
    """Callers may catch the standard exception."""
    with pytest.raises(ValueError, match="num_workers"):
        GroupSpec(num_workers=-1)


def test_a_scaling_config_is_read_by_its_attributes() -> None:
    """Anything shaped as `ray.train.ScalingConfig` gives a spec."""
    config = SimpleNamespace(
        num_workers=4, use_gpu=True, resources_per_worker={"CPU": 2}, placement_strategy="SPREAD"
    )
    spec = GroupSpec.from_scaling_config(config, start_timeout_s=5)
    assert spec.num_workers == 4
    assert spec.resources_per_worker == (("CPU", 2.0), ("GPU", 1.0))
    assert spec.placement_strategy == "SPREAD"
    assert spec.start_timeout_s == 5


def test_an_elastic_scaling_config_is_refused() -> None:
    """A range of workers is not a number of workers."""
    config = SimpleNamespace(
        num_workers=(1, 4), use_gpu=False, resources_per_worker=None, placement_strategy="PACK"
    )
    with pytest.raises(SpecError, match=r"num_workers=\(1, 4\)"):
        GroupSpec.from_scaling_config(config)


def test_an_accelerator_type_is_asked_for_as_ray_does() -> None:
    """A type of GPU is a small share of the resource that nodes with such GPUs have."""
    config = ScalingConfig(num_workers=2, use_gpu=True, accelerator_type="H100")
    spec = GroupSpec.from_scaling_config(config)
    assert dict(spec.resources_per_worker) == {"CPU": 1.0, "GPU": 1.0, "accelerator_type:H100": 0.001}
    assert spec.backend == "nccl"


def test_labels_go_to_every_worker_or_to_each_its_own() -> None:
    """One selector holds for all workers, a list has one for each; spares get that of all."""
    both = GroupSpec.from_scaling_config(ScalingConfig(num_workers=2, label_selector={"zone": "a"}), spares=1)
    assert both.label_selectors == ((("zone", "a"),), (("zone", "a"),))
    assert both.for_spares().label_selectors == ((("zone", "a"),),)
    each = GroupSpec.create(2, label_selector=[{"zone": "a"}, {}])
    assert each.label_selectors == ((("zone", "a"),), ())
    assert GroupSpec.create(2, label_selector={}).label_selectors == ()


def test_tpus_are_refused() -> None:
    """A config for TPUs is refused by name, before anything starts."""
    config = SimpleNamespace(num_workers=4, use_tpu=True)
    with pytest.raises(SpecError, match="use_tpu=True"):
        GroupSpec.from_scaling_config(config)
