"""The first dozen schedules of the campaign, on this machine; ``make chaos`` runs a hundred on nodes."""

from __future__ import annotations

import pytest

from tests.chaos.campaign import run

pytestmark = pytest.mark.ray
SEEDS = [seed if seed in (3, 11) else pytest.param(seed, marks=pytest.mark.slow) for seed in range(12)]


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_to_processes_gives_the_same_bits(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills, freezes and arrivals leave the hash of the run in one process."""
    failed = run([seed], cut_off_s=200.0, lab=None)
    assert failed == 0, capsys.readouterr().out
