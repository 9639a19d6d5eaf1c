"""The benchmark for a GPU compares loops that do the same work; here it runs on a CPU, with a tiny model."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "benchmarks" / "gpu.py"
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The program's names; it finds `harness` beside itself."""
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    return runpy.run_path(str(PROGRAM))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False
    )


def test_its_file_has_the_form_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, versions and machine, of which a table can be made; what needs a GPU is said to be skipped."""
    target = tmp_path / "gpu.json"
    completed = run("--device", "cpu", "--tiny", "--rounds", "1", "--json", str(target))
    assert completed.returncode == 0, completed.stdout + completed.stderr
    found = json.loads(target.read_text(encoding="utf-8"))
    assert {"name", "question", "against", "rows", "date", "versions", "machine"} <= set(found)
    assert {"system", "machine", "cpus", "load", "device"} <= set(found["machine"])
    numbers = {"median", "min", "max", "runs", "ratio"}
    assert all(set(row) == {"contender", "metric", *numbers} for row in found["rows"])
    figures = {(row["contender"], row["metric"]) for row in found["rows"]}
    assert {("plain loop", "tokens_a_s"), ("orchestrator", "tokens_a_s")} <= figures
    assert {("torch.save", "stall_s"), ("orchestrator, ModelCheckpoint", "stall_s")} <= figures
    assert found["skipped"] == {"prefetch": "no CUDA device", "syncs": "no CUDA device"}
    assert found["work"]["plain loop"] == found["work"]["orchestrator"]
    assert found["work"]["orchestrator"]["steps"] == 13
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    assert "| orchestrator | tokens a second |" in table["table"](found)
    assert table["origin"](found).endswith(" CPUs, cpu.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_says_so_in_a_line() -> None:
    """And ends with status 2, before anything is measured."""
    completed = run()
    assert completed.returncode == 2 and completed.stdout == ""
    assert completed.stderr.count("\n") == 1 and "torch sees no CUDA device" in completed.stderr


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_both_loops_do_the_same_work(gpu: dict[str, Any], precision: str) -> None:
    """As many steps and samples, and every weight equal to the bit afterwards, and not what it was."""
    size = gpu["TINY"]
    task = gpu["gpt_task"](size, CPU, precision=precision, log_every=size.log_every)
    kept = gpu["token_batches"](size, CPU)
    ends = []
    for loop in gpu["LOOPS"].values():
        batches = gpu["Batches"](kept, size.steps)
        trained = loop(task, batches, lambda index: False)
        ends.append((trained.steps, batches.samples, trained.module.state_dict()))
    (steps, samples, plain), (our_steps, our_samples, ours) = ends
    assert (steps, samples) == (our_steps, our_samples) == (size.steps, size.steps * size.sequences)
    start = task.make().state_dict()
    assert plain.keys() == ours.keys() == start.keys()
    assert all(torch.equal(plain[name], ours[name]) for name in plain)
    assert not torch.equal(plain["token.weight"], start["token.weight"])


def test_loops_that_differ_are_not_compared(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that leaves steps out raises, rather than being the faster one."""
    plain, names = gpu["run_plain"], gpu["measure_throughput"].__globals__

    def miscounted(*given: Any) -> Any:
        trained = plain(*given)
        return type(trained)(module=trained.module, steps=trained.steps - 1)

    monkeypatch.setitem(names, "LOOPS", {"plain loop": plain, "orchestrator": miscounted})
    with pytest.raises(RuntimeError, match="not done the same work"):
        gpu["measure_throughput"](gpu["TINY"], CPU, 1, compiled=False)


def test_what_needs_a_gpu_runs_on_a_cpu_too(gpu: dict[str, Any]) -> None:
    """Its code, that is: each contender has its figures, and nothing waits for a device that is not there."""
    rows = gpu["measure_prefetch"](gpu["TINY"], CPU, 1)
    assert {row["metric"] for row in rows} == {"large_batch_step_ms"} and len(rows) == 3
    rows = gpu["measure_syncs"](gpu["TINY"], CPU)
    assert len(rows) == 4 and {row["median"] for row in rows} == {0.0}
    assert {row["ratio"] for row in rows} == {None}


def test_waits_are_told_from_what_does_not_wait(gpu: dict[str, Any]) -> None:
    """Synchronisations and copies to the host count; launches and copies to the device do not."""
    counts = {
        "cudaStreamSynchronize": 3,
        "cudaDeviceSynchronize": 1,
        "cudaMemcpyAsync": 9,
        "cudaLaunchKernel": 9,
        "Memcpy DtoH (Device -> Pageable)": 2,
        "Memcpy HtoD (Pinned -> Device)": 9,
    }
    assert gpu["waits_in"](counts) == {"waits_for_device_a_step": 4, "copies_to_host_a_step": 2}


def test_a_stall_is_the_time_over_the_usual_step(gpu: dict[str, Any]) -> None:
    """Of all steps from the save until the file is complete; never negative."""
    marks = dict(enumerate([0.0, 1.0, 2.0, 3.0, 7.0, 8.5, 9.0]))
    assert gpu["stall_s"](marks, 4, 4, 4) == 3.0
    assert gpu["stall_s"](marks, 4, 4, 5) == 3.5
    assert gpu["stall_s"](marks, 4, 6, 6) == 0.0


def test_the_model_is_the_one_that_is_named(gpu: dict[str, Any]) -> None:
    """124 M parameters, and the operations of a token are counted from its real weights."""
    model = gpu["FULL"].model
    with torch.device("meta"):
        built = gpu["GPT"](**model)
    weights = sum(item.numel() for item in built.parameters())
    assert round(weights / 1e6) == 124
    of_products = sum(item.numel() for item in built.parameters() if item.dim() == 2)
    of_products -= built.place.weight.numel()
    attention = 12 * model["layers"] * model["width"] * model["context"]
    assert gpu["flops_of_token"](model) == 6 * of_products + attention
