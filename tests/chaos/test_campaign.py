"""The first dozen schedules of the campaign; ``make chaos`` runs a hundred."""

from __future__ import annotations

import pytest

from tests import netlab
from tests.chaos.campaign import run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(netlab.missing() is not None, reason=str(netlab.missing())),
]


def test_whatever_happens_to_processes_and_nodes_gives_the_same_bits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Kills, freezes, lost nodes, cut links and arrivals leave the hash of the run in one process."""
    failed = run(list(range(12)), cut_off_s=300.0, here=False)
    assert failed == 0, capsys.readouterr().out
