"""`orchestrator doctor`: what it prints, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import doctor as examining
from cluster.diagnosis import diagnose
from cluster.examination import Disk, Examination, LinkFacts, NodeFacts, ReduceFacts, StorageFacts
from cluster.preflight import Report
from orchestrator.cli import main
from orchestrator.cli.doctor import as_json, as_text

HERE = Report(python="3.11", torch="2.13.0", project="abc", where="/opt/project")


def healthy(address: str = "127.0.0.1") -> NodeFacts:
    """A node without faults."""
    shm = Disk(use="shared memory", path="/dev/shm", total_bytes=2**34, free_bytes=2**33)
    return NodeFacts(address=address, versions=HERE, ray="2.60.0", shm=shm, open_files=(65536, 65536))


def alone(node: NodeFacts) -> Examination:
    """This machine, without a cluster."""
    return Examination(cluster=None, driver=node.address, here=HERE, here_ray="2.60.0", nodes=(node,))


def pair() -> Examination:
    """Two nodes, one of which has not answered, and what was found of their links."""
    nodes = healthy("10.0.0.1"), NodeFacts(address="10.0.0.2", error="no answer within 60 s")
    link = LinkFacts(source="10.0.0.1", target="10.0.0.2", port=9, latency_s=3e-4, bytes_per_s=1.25e9)
    return Examination(
        cluster="10.0.0.1:6379",
        driver="10.0.0.1",
        here=HERE,
        here_ray="2.60.0",
        nodes=nodes,
        links=(link,),
        all_reduce=ReduceFacts(size_bytes=4 * 2**20, seconds=0.0123),
        storage=StorageFacts(path="/mnt", nodes=(("10.0.0.1", None),)),
    )


@pytest.mark.parametrize(
    ("free_bytes", "arguments", "status"),
    [(2**33, [], 0), (2**28, [], 0), (2**28, ["--strict"], 1), (2**20, [], 1)],
)
def test_the_status_tells_how_bad_it_is(
    free_bytes: int,
    arguments: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0 without errors, 1 with, and with --strict after warnings too."""
    shm = Disk(use="shared memory", path="/dev/shm", total_bytes=2**34, free_bytes=free_bytes)
    found = alone(NodeFacts(address="127.0.0.1", versions=HERE, ray="2.60.0", shm=shm))
    monkeypatch.setattr(examining, "examine_machine", lambda storage: found)
    assert main(["doctor", *arguments]) == status
    assert ("Nothing is wrong." in capsys.readouterr().out) == (free_bytes == 2**33)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "127.0.0.1:9"], "No Ray answers at 127.0.0.1:9"),
        (["--nodes", "10.0.0.1"], "--nodes 10.0.0.1 without a cluster"),
    ],
)
def test_what_cannot_be_examined_is_status_2(words: list[str], said: str) -> None:
    """A cluster that does not answer, or nodes without a cluster, are one line on standard error."""
    program = "import sys; from orchestrator.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "doctor", *words]  # here, other tests may have started a Ray
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_this_machine_is_examined_without_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, the machine is looked at as it is, with the place to write to, and as JSON."""
    assert main(["doctor", "--json", "--storage", str(tmp_path)]) in (0, 1)  # the machine may be ill
    printed = json.loads(capsys.readouterr().out)
    assert printed["cluster"] is None
    assert printed["storage"] == {"path": str(tmp_path), "here": None, "nodes": []}
    assert printed["nodes"][0]["versions"]["torch"].count(".") == 2


def test_text_tells_facts_and_findings() -> None:
    """Nodes stand in a table, a line says how links, all-reduce and storage are, and each finding is there
    with its node and what to do.
    """
    found = pair()
    text = as_text(found, diagnose(found), 3.21)
    assert text.startswith("Examined 2 nodes of the cluster at 10.0.0.1:6379 in 3.2 s.\n\nnode      python")
    assert "10.0.0.2  ?" in text
    assert "at least 10.00 Gbit/s (10.0.0.1 to 10.0.0.2), round trips at most 0.30 ms" in text
    assert "all-reduce of 4 MiB over all nodes: 12 ms" in text
    assert "storage /mnt: shared and writable" in text
    assert "ERROR    node 10.0.0.2, node: it could not be looked at: no answer within 60 s.\n" in text
    assert text.endswith("1 error, 0 warnings.")
    assert as_text(alone(healthy()), [], 0.1).endswith("Nothing is wrong.")


def test_json_holds_facts_and_findings() -> None:
    """Everything that was found is there by name."""
    found = pair()
    printed = json.loads(as_json(found, diagnose(found), 3.21))
    assert printed["seconds"] == 3.21
    assert [item["check"] for item in printed["findings"]] == ["node"]
    assert printed["findings"][0]["severity"] == "error"
    assert printed["links"][0]["bytes_per_s"] == 1.25e9
    assert printed["all_reduce"]["seconds"] == 0.0123
