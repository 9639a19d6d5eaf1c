"""The first dozen schedules of the campaign, each by itself; ``make chaos`` runs a hundred."""

from __future__ import annotations

import pytest

from tests import netlab
from tests.chaos.campaign import run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(netlab.missing() is not None, reason=str(netlab.missing())),
]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_processes_and_nodes_gives_the_same_bits(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills, freezes, lost nodes, cut links and arrivals leave the hash of the run in one process."""
    failed = run([seed], cut_off_s=200.0, here=False)
    assert failed == 0, capsys.readouterr().out
