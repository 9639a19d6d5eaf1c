"""A group of one worker trains to the very weights that this process does."""

from __future__ import annotations

from typing import Any

import pytest
from ray.train import ScalingConfig

import orchestrator
from tests.orchestrator.groups import HALF_A_CPU
from tests.orchestrator.parity import CASES, train
from tests.orchestrator.tiny import assert_equal_weights

pytestmark = pytest.mark.ray

ON_A_GROUP: dict[str, Any] = {
    "scaling_config": ScalingConfig(num_workers=1, resources_per_worker=HALF_A_CPU),
    "threads_per_worker": 1,
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_this_process(case: str) -> None:
    """Weights, counters, metrics and the random numbers that follow are equal, the weights to the bit."""
    build, arguments = CASES[case]
    here, trainer = train(orchestrator, build, **arguments)
    there, remote = train(orchestrator, build, **arguments, **ON_A_GROUP)
    assert_equal_weights(there, here)
    assert remote.state.counters() == trainer.state.counters()
    assert remote.callback_metrics == trainer.callback_metrics
    assert all(item.requires_grad for item in there.parameters())
