"""What is found out on a node, here on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.diagnosis import RAYS_FILES, diagnose
from cluster.doctor import distances, examine_machine
from cluster.examiner import examine, leave, remove, see
from cluster.preflight import report


def test_this_machine_is_seen_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Versions, interfaces, routes, limits, disks and what the environment says of interfaces are found."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eno7")
    found = examine("127.0.0.1", "127.0.0.1", str(tmp_path))
    assert found.versions == report()
    assert found.leaves_by in {item.name for item in found.interfaces if "127.0.0.1" in item.addresses}
    assert found.chosen == (("GLOO_SOCKET_IFNAME", "eno7"),)
    assert found.open_files is not None and found.open_files[0] <= found.open_files[1]
    assert [item.use for item in found.disks] == [RAYS_FILES, "temporary files"]
    assert (found.shm is not None) == os.path.isdir("/dev/shm")


def test_a_machine_alone_is_judged_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An interface that is not there is found on a machine without a cluster, and storage is tried."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eno7")
    (tmp_path / "runs").mkdir()
    found = examine_machine(str(tmp_path / "runs"))
    assert found.cluster is None
    assert "interface" in {item.check for item in diagnose(found)}
    assert found.storage is not None and found.storage.here is None
    assert list((tmp_path / "runs").iterdir()) == []


def test_storage_that_others_do_not_see_is_told(tmp_path: Path) -> None:
    """A folder with the driver's file is shared; one without, one that is missing, and one that cannot be
    written are told apart, by path and by URI.
    """
    shared, apart = tmp_path / "shared", tmp_path / "apart"
    assert leave(str(shared), "token") == leave(shared.as_uri(), "token") == "there is no such folder"
    assert list(tmp_path.iterdir()) == []
    shared.mkdir()
    apart.mkdir()
    assert leave(str(shared), "token") is None
    assert see(str(shared), "token") is None
    assert see(shared.as_uri(), "token") is None
    assert see(str(apart), "token") == "it is another disk than the driver's"
    assert see(str(tmp_path / "none"), "token") == "there is no such folder"
    remove(str(shared), "token")
    assert list(shared.iterdir()) == []
    (tmp_path / "file").touch()
    assert leave(str(tmp_path / "file"), "token") == "there is no such folder"
    assert (leave("nosuch://bucket/x", "token") or "").startswith("it cannot be written (")


def test_links_of_many_nodes_are_sampled() -> None:
    """Up to nine nodes all pairs are measured, of more those at distances of powers of two."""
    assert distances(1) == []
    assert distances(9) == list(range(1, 9))
    assert distances(64) == [1, 2, 4, 8, 16, 32]
