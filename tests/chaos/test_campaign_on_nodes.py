"""The first dozen schedules of the campaign, on nodes of their own; ``make chaos`` runs a hundred."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import netlab
from tests.chaos.campaign import NODES, run
from tests.netlab import NetLab

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(netlab.missing() is not None, reason=str(netlab.missing())),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[NetLab]:
    with NetLab(nodes=NODES, cpus=1) as started:
        yield started


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_nodes_gives_the_same_bits(
    seed: int, lab: NetLab, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills, freezes, lost nodes, cut links and arrivals leave the hash of the run in one process."""
    failed = run([seed], cut_off_s=200.0, lab=lab)
    assert failed == 0, capsys.readouterr().out
