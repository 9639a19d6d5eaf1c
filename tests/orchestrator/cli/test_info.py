"""`orchestrator info`: what it finds, and that it only looks."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli import info, main

GIB = 2**30


@pytest.fixture
def listener() -> Iterator[str]:
    """The address of a socket that listens on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        yield f"{host}:{port}"


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
    return f"{host}:{port}"


def test_json_holds_every_field(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--json` prints one object with a key for each field, and the versions that are installed."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["info", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == [field.name for field in dataclasses.fields(info.Info)]
    assert printed["versions"]["torch"] == sys.modules["torch"].__version__  # with its build, such as +cpu
    assert printed["memory_bytes"] > 0
    assert "gloo" in printed["backends"]
    assert "local" in printed["filesystems"]


def test_nothing_is_started() -> None:
    """Collecting the facts does not even import Ray, let alone start it."""
    program = "import sys; from orchestrator.cli import info; info.collect(); assert 'ray' not in sys.modules"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stderr) == (0, "")


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not there is reported so, not raised."""
    monkeypatch.setattr(info, "_PACKAGES", ("no-such-distribution",))
    assert info.collect().versions["no-such-distribution"] == "not installed"


def test_an_address_in_the_environment_is_probed(listener: str, tmp_path: Path) -> None:
    """RAY_ADDRESS wins over the file on disk, also in Ray Client's form."""
    (tmp_path / "ray_current_cluster").write_text("10.0.0.1:6379")
    for address in (listener, f"ray://{listener}"):
        assert info.find_ray(address, tmp_path) == info.RayState(
            address=address, source="RAY_ADDRESS", answers=True
        )


def test_a_running_cluster_is_found_by_its_file(listener: str, tmp_path: Path) -> None:
    """Without RAY_ADDRESS, or with "auto", the address that Ray left on disk counts."""
    current = tmp_path / "ray_current_cluster"
    current.write_text(listener + "\n")
    expected = info.RayState(address=listener, source=str(current), answers=True)
    assert info.find_ray(None, tmp_path) == expected
    assert info.find_ray("auto", tmp_path) == expected


def test_a_dead_address_is_said_to_be_silent(nobody: str, tmp_path: Path) -> None:
    """An address where nothing listens is reported with that fact."""
    assert info.find_ray(nobody, tmp_path).answers is False


@pytest.mark.parametrize("address", ["local", "host", "host:port"])
def test_an_address_without_a_port_is_not_probed(address: str, tmp_path: Path) -> None:
    """Where there is no port to try, nothing is claimed."""
    assert info.find_ray(address, tmp_path).answers is None


def test_no_cluster_is_none(tmp_path: Path) -> None:
    """Neither address nor file: there is no cluster to attach to."""
    assert info.find_ray(None, tmp_path) == info.RayState(address=None, source=None, answers=None)


def test_text_has_a_line_for_each_fact() -> None:
    """The text lines up names and values, with sizes in GiB and what is absent in words."""
    facts = info.Info(
        versions={"orchestrator": "1.2.3"},
        platform="Linux",
        cpus=8,
        cpus_usable=4,
        memory_bytes=16 * GIB,
        gpus=(info.Gpu(name="H100", memory_bytes=80 * GIB),),
        cuda="13.0",
        backends=("gloo", "nccl"),
        ray=info.RayState(address="head:6379", source="RAY_ADDRESS", answers=False),
        disks={"shared memory": info.Disk(path="/dev/shm", free_bytes=None)},
        filesystems=("local", "s3"),
    )
    assert info.format_text(facts).splitlines() == [
        "orchestrator   1.2.3",
        "platform       Linux",
        "CPUs           4 usable of 8",
        "memory         16.0 GiB",
        "GPUs           H100, 80.0 GiB",
        "CUDA           13.0",
        "backends       gloo, nccl",
        "Ray cluster    head:6379 (from RAY_ADDRESS; nothing listens there)",
        "shared memory  /dev/shm (does not exist)",
        "filesystems    local, s3",
    ]
