"""Rates from totals, operations from a pass, and what devices can do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from orchestrator.device_peaks import available_flops, peak_flops
from orchestrator.throughput import Throughput, measure_flops


def test_rates_look_back_on_a_window() -> None:
    """Rates appear when the window is full, and are differences over it, whatever was before."""
    rates = Throughput(window_size=3)
    rates.update(time=1.0, batches=1, samples=10, lengths=100)
    rates.update(time=50.0, batches=2, samples=20, lengths=200)
    assert rates.compute() == {"time": 50.0, "batches": 2, "samples": 20, "lengths": 200}
    rates.update(time=51.0, batches=4, samples=40, lengths=400)
    rates.update(time=52.0, batches=6, samples=60, lengths=600)
    found = rates.compute()
    assert found["device/batches_per_sec"] == 2.0
    assert found["device/samples_per_sec"] == 20.0
    assert found["device/items_per_sec"] == 200.0
    assert "samples_per_sec" not in found


def test_several_devices_have_global_rates() -> None:
    """With a world size there are rates of all devices too, named without the device."""
    rates = Throughput(world_size=4, window_size=2, separator="|")
    rates.update(time=0.0, batches=0, samples=0)
    rates.update(time=2.0, batches=1, samples=8)
    found = rates.compute()
    assert (found["device|samples_per_sec"], found["samples_per_sec"]) == (4.0, 16.0)


def test_mfu_is_a_share_of_what_the_device_can_do() -> None:
    """Operations of the window's intervals over its time, over the peak."""
    rates = Throughput(available_flops=1000.0, window_size=2)
    for time in range(5):
        rates.update(time=float(time), batches=time, samples=time, flops=250)
    found = rates.compute()
    assert found["device/flops_per_sec"] == 250.0
    assert found["device/mfu"] == 0.25


@given(st.lists(st.integers(0, 50), min_size=2, max_size=30), st.integers(2, 10))
def test_rates_are_those_of_the_last_updates(steps: list[int], window: int) -> None:
    """Whatever came before the window plays no part in a rate."""
    rates = Throughput(window_size=window)
    samples = 0
    history = []
    for time, count in enumerate(steps):
        samples += count
        rates.update(time=float(time), batches=time, samples=samples)
        history.append(samples)
    expected = (history[-1] - history[-window]) / (window - 1) if len(steps) >= window else None
    assert rates.compute().get("device/samples_per_sec") == expected


@pytest.mark.parametrize(
    "later", [{"time": 0.5}, {"batches": 0}, {"samples": 3}, {"lengths": 7}, {"lengths": None}]
)
def test_totals_do_not_shrink(later: dict[str, Any]) -> None:
    """A total below the last one, or one that comes and goes, is an error that names it; reset allows it."""
    rates = Throughput()
    rates.update(time=1.0, batches=1, samples=4, lengths=8)
    values = {"time": 2.0, "batches": 2, "samples": 8, "lengths": 16, **later}
    with pytest.raises(ValueError, match=rf"Throughput.update\({next(iter(later))}="):
        rates.update(**values)
    rates.reset()
    rates.update(**values)
    assert rates.compute()["time"] == values["time"]


@pytest.mark.parametrize("wrong", [{"window_size": 1}, {"world_size": 0}, {"available_flops": 0.0}])
def test_arguments_are_checked(wrong: dict[str, Any]) -> None:
    """A window of one update has no rate, and no device none."""
    with pytest.raises(ValueError, match=rf"Throughput\({next(iter(wrong))}="):
        Throughput(**wrong)


def test_operations_of_forward_and_backward_are_counted() -> None:
    """Backward of a linear layer whose input needs no gradient costs as much as forward; gradients go."""
    model, batch = nn.Linear(4, 2), torch.randn(8, 4)
    forward = measure_flops(model, lambda: model(batch))
    both = measure_flops(model, lambda: model(batch), torch.sum)
    assert (forward, both) == (2 * 8 * 4 * 2, 2 * 2 * 8 * 4 * 2)
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989.4),
        ("NVIDIA H100 PCIe", "16-mixed", 756),
        ("NVIDIA H200", "bf16-true", 989.4),
        ("NVIDIA A100-SXM4-80GB", "32-true", 19.5),
        ("NVIDIA A10G", "bf16-mixed", 70),
        ("NVIDIA A10", "bf16-mixed", 125),
        ("NVIDIA L4", "bf16-mixed", 121),
        ("NVIDIA L40S", "bf16-mixed", 362),
        ("Tesla T4", "16-mixed", 65),
        ("Tesla V100-SXM2-16GB", "16-mixed", 125),
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", 165.2),
    ],
)
def test_the_peak_is_found_by_the_devices_name(name: str, precision: str, tera: float) -> None:
    """Names as torch reports them lead to the data sheet's figure, and near names are told apart."""
    assert peak_flops(name, precision) == tera * 1e12


def test_unknown_devices_and_formats_have_no_peak() -> None:
    """Nothing is guessed: another device, float64, and the CPU have no peak; TF32 has its own."""
    assert peak_flops("NVIDIA A1000 Laptop", "bf16-mixed") is None
    assert peak_flops("NVIDIA A100-SXM4-80GB", "64-true") is None
    assert available_flops(torch.device("cpu"), "32-true") is None
    assert peak_flops("NVIDIA A100-SXM4-80GB", "32-true", tf32=True) == 156e12
