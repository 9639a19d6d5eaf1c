"""What a trial reserves."""

from __future__ import annotations

from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.tune import PlacementGroupFactory

from cluster.spec import GroupSpec
from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.resources import TrialRoom, factory, parse_resources, room_of


def test_a_trial_in_one_process_reserves_one_bundle() -> None:
    """Names may be written as Tune writes them; nothing given is one CPU, and threads follow the CPUs."""
    assert parse_resources(None) == TrialRoom(own={"CPU": 1.0})
    assert parse_resources({"cpu": 2, "gpu": 0.5}) == TrialRoom(own={"CPU": 2.0, "GPU": 0.5})
    assert parse_resources({"CPU": 2.5}).threads == 2


def test_workers_reserve_a_bundle_each_and_their_trial_none() -> None:
    """So that Ray places a trial with its workers, or not at all."""
    room = parse_resources(ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}))
    assert room.bundles == [{}, {"CPU": 0.5}, {"CPU": 0.5}]
    made = factory(room)
    assert made.head_bundle_is_empty
    assert parse_resources(made) == room
    assert parse_resources(PlacementGroupFactory([{"CPU": 1}, {"CPU": 2}])).workers == ({"CPU": 2.0},)


def test_the_room_follows_from_a_trainers_group() -> None:
    """A module's sweep need not be told what its Trainer asks for."""
    assert room_of(None) == TrialRoom(own={"CPU": 1.0})
    assert room_of(GroupSpec.create(3)).workers == ({"CPU": 1.0},) * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"CPU": -1}, "-1 CPU is less than nothing"),
        ({"CPU": 0}, "reserves nothing"),
        ({"CPU": "2"}, "Use a dictionary"),
        (3, "resources_per_trial=3"),
    ],
)
def test_impossible_reservations_are_refused(given: Any, words: str) -> None:
    """The message says what to write."""
    with pytest.raises(MisconfigurationError, match=words):
        parse_resources(given)
