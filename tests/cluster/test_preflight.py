"""What is checked of nodes before work begins: the pure rules, and the probe of links."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from cluster.errors import StartError
from cluster.preflight import (
    Probe,
    Report,
    check_links,
    check_versions,
    differences,
    hash_project,
    report,
    warn_of,
)

HERE = Report(python="3.11", torch="2.13.0", project="abc", where="/opt/project")


def test_equal_nodes_pass() -> None:
    """Nodes that run what the driver runs have no differences; where it is installed makes none."""
    check_versions(HERE, {"10.0.0.1": HERE, "10.0.0.2": replace(HERE, where="/elsewhere")})


def test_every_node_that_differs_is_named_with_both_versions() -> None:
    """The error has a line for each node that differs, in order, and says what to do."""
    nodes = {
        "10.0.0.9": replace(HERE, torch="2.9.1", python="3.12"),
        "10.0.0.1": replace(HERE, project="xyz", where="/old"),
        "10.0.0.5": HERE,
    }
    with pytest.raises(StartError) as caught:
        check_versions(HERE, nodes)
    assert str(caught.value).splitlines() == [
        "2 of 3 nodes have other versions than this process:",
        "  node 10.0.0.1: other source of this project (in /old, xyz instead of abc)",
        "  node 10.0.0.9: python 3.12 instead of 3.11, torch 2.9.1 instead of 2.13.0",
        "Install the same versions of Python, torch and this project on every node.",
    ]


def test_the_report_of_this_process_is_its_own() -> None:
    """A process does not differ from itself; builds of torch are not told apart."""
    mine = report()
    assert differences(mine, {"here": mine}) == []
    assert "+" not in mine.torch
    assert mine.project == hash_project()


def test_a_late_node_that_differs_is_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A replacement that differs is not used, and the log says why; one that does not is used silently."""
    assert warn_of("10.0.0.7", replace(report(), torch="1.0"))
    assert "node 10.0.0.7: torch 1.0 instead of" in caplog.text
    caplog.clear()
    assert not warn_of("10.0.0.7", report())
    assert not caplog.records


def test_a_probe_reaches_who_listens() -> None:
    """A listening peer is reached, a closed port is refused with the reason, in the order asked."""
    one, two = Probe(), Probe()
    try:
        target = one.open("127.0.0.1")
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            closed = unused.getsockname()
        found = two.reach([target, closed])
        assert found[0] is None
        assert found[1] is not None and "refused" in found[1]
    finally:
        one.close()
    assert two.reach([target])[0] is not None
    assert two.reach([]) == []


def test_both_ends_of_a_broken_link_are_named() -> None:
    """The error names who does not reach whom, the driver included."""
    with pytest.raises(StartError) as caught:
        check_links(["a", "b"], [[None, None, "no answer"], ["refused", None, None]], "c")
    text = str(caught.value)
    assert text.startswith("2 links between the nodes of this group do not work:")
    assert "  node a does not reach node b: no answer\n" in text
    assert "  node b does not reach the driver at c: refused\n" in text
    check_links(["a", "b"], [[None] * 3, [None] * 3], "c")
