"""A trial that goes on from another's checkpoint keeps the options of its own configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau, SequentialLR, StepLR

from orchestrator.sweep.retuning import GroupOptions, retune


def parameters() -> list[torch.nn.Parameter]:
    """One parameter with a gradient."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return [parameter]


def restored(fresh: Any, donor: Any) -> list[GroupOptions]:
    """Load a donor's state into a fresh optimizer, as a resumed fit does; return what was asked before."""
    asked = [GroupOptions.of(fresh)]
    fresh.load_state_dict(donor.state_dict())
    return asked


def test_plain_options_are_those_of_the_new_configuration() -> None:
    """And the state, such as Adam's moments, is the donor's."""
    donor, fresh = AdamW(parameters(), lr=0.1), AdamW(parameters(), lr=0.3, weight_decay=0.5)
    donor.step()
    asked = restored(fresh, donor)
    assert fresh.param_groups[0]["lr"] == 0.1
    retune([fresh], [], asked)
    assert fresh.param_groups[0]["lr"] == 0.3
    assert fresh.param_groups[0]["weight_decay"] == 0.5
    assert fresh.state[fresh.param_groups[0]["params"][0]]["step"] == 1


def test_a_schedule_keeps_its_place() -> None:
    """The learning rate is where the donor's schedule was, scaled to the new start."""
    donor, fresh = SGD(parameters(), lr=0.1), SGD(parameters(), lr=0.4)
    its, mine = StepLR(donor, 1, gamma=0.5), StepLR(fresh, 1, gamma=0.5)
    donor.step()
    its.step()
    asked = restored(fresh, donor)
    mine.load_state_dict(its.state_dict())
    retune([fresh], [mine], asked)
    assert fresh.param_groups[0]["lr"] == pytest.approx(0.2)
    assert mine.base_lrs == [0.4]
    fresh.step()
    mine.step()
    assert fresh.param_groups[0]["lr"] == pytest.approx(0.1)


def test_schedules_made_of_others_are_followed_inside() -> None:
    """The parts of a chain have starts of their own; one that only reacts has none."""
    donor, fresh = SGD(parameters(), lr=0.1), SGD(parameters(), lr=0.4)

    def chain(optimizer: SGD) -> SequentialLR:
        return SequentialLR(optimizer, [LinearLR(optimizer), StepLR(optimizer, 1)], [2])

    its, mine = chain(donor), chain(fresh)
    asked = restored(fresh, donor)
    mine.load_state_dict(its.state_dict())
    retune([fresh], [mine, ReduceLROnPlateau(fresh)], asked)
    assert all(part.base_lrs == [0.4] for part in mine._schedulers)


def test_learning_rates_that_are_tensors_are_changed_in_place() -> None:
    """A captured or compiled step reads the tensor."""
    donor = SGD(parameters(), lr=torch.tensor(0.1), foreach=False)
    fresh = SGD(parameters(), lr=torch.tensor(0.3), foreach=False)
    asked = restored(fresh, donor)
    tensor = fresh.param_groups[0]["lr"]
    retune([fresh], [], asked)
    assert fresh.param_groups[0]["lr"] is tensor
    assert float(tensor) == pytest.approx(0.3)
