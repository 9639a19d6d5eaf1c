"""Which samples made a loss jump: the search by halves, and that it is found in a run's replay."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from orchestrator.poison import PoisonFound, Probe, heaviest, jumps, narrow, part_of
from orchestrator.poison_search import find_suspect
from tests.orchestrator.tiny import Tiny, points, quiet_trainer


@given(st.integers(1, 70), st.data())
def test_all_that_are_bad_by_themselves_are_found(size: int, data: st.DataObject) -> None:
    """Whatever their number and places are, in about as many tries as halving needs."""
    bad = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    tries = []

    def is_bad(part: Any) -> bool:
        tries.append(part)
        return bool(bad & set(part))

    assert narrow(range(size), is_bad) == sorted(bad)
    assert len(tries) <= 2 * len(bad) * (math.ceil(math.log2(size)) + 1)


def test_those_that_are_bad_only_together_are_kept_together() -> None:
    """Where no half of them is bad, none of them is named alone."""
    assert narrow(range(6), lambda part: {0, 5} <= set(part)) == [0, 1, 2, 3, 4, 5]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.data())
def test_the_one_that_weighs_most_is_found(losses: list[float], data: st.DataObject) -> None:
    """Where it outweighs all others together."""
    place = data.draw(st.integers(0, len(losses) - 1))
    losses[place] = 100.0
    assert heaviest(range(len(losses)), lambda part: sum(losses[i] for i in part) / len(part)) == place


def test_a_jump_is_far_above_what_is_usual() -> None:
    """Not below it, not where too little is known, and what is not finite always is one."""
    usual = [1.0, 1.1, 0.9, 1.05]
    assert jumps(4.0, usual) and jumps(math.inf, usual) and jumps(math.nan, [])
    assert not jumps(1.2, usual) and not jumps(-9.0, usual) and not jumps(100.0, usual[:2])
    assert jumps(4.0, [math.nan, *usual])


def test_a_part_of_a_batch_has_its_form_and_size() -> None:
    """Nested tensors and lists of words; what has no row for each sample stays."""
    batch = {"x": (torch.arange(4), torch.tensor(7.0)), "words": ["a", "b", "c", "d"], "n": 3}
    part = part_of(batch, [3, 1], 4)
    assert part["x"][0].tolist() == [3, 1, 3, 1] and part["x"][1] == 7.0
    assert part["words"] == ["d", "b", "d", "b"] and part["n"] == 3
    pair = part_of([torch.arange(2), torch.arange(2) + 5], [1], 2)
    assert [item.tolist() for item in pair] == [[1, 1], [6, 6]]


def test_the_first_loss_that_is_not_finite_is_suspected() -> None:
    """Before any jump; validation's losses and other numbers are none of it."""
    smooth = [(step, 1.0 + 0.01 * (step % 3)) for step in range(9)]
    curves = {"loss": [*smooth, (9, 50.0), (10, math.nan), (11, math.inf)], "val_loss": [(1, math.nan)]}
    found = find_suspect(curves)
    assert found is not None and (found.name, found.step) == ("loss", 10)
    found = find_suspect({"train_loss": [*smooth, (9, 50.0), (10, 3.0)]})
    assert found is not None and (found.step, found.value) == (9, 50.0)
    early = find_suspect({"loss": [(0, 1.0), (1, 80.0), *[(step + 2, value) for step, value in smooth]]})
    assert early is not None and early.step == 1
    assert find_suspect({"loss": smooth, "lr": [(0, math.nan)]}) is None


class Poisoned(Tiny):
    """Weighs each sample's error with a number of its own, and has what draws and what looks at others."""

    def __init__(self) -> None:
        super().__init__(dropout=0.3)
        self.norm = torch.nn.BatchNorm1d(4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets, scale = batch
        error = ((self.net(self.norm(inputs)) - targets) ** 2).squeeze(1) * scale
        self.log("loss", error.mean())
        return error.mean()


def poisoned_loader(scales: dict[int, float], length: int = 48) -> DataLoader[Any]:
    inputs, targets = points(length).tensors
    scale = torch.ones(length)
    for place, value in scales.items():
        scale[place] = value
    return DataLoader(TensorDataset(inputs, targets, scale), batch_size=8)


@pytest.mark.parametrize(
    ("scales", "step", "samples"),
    [({29: math.nan}, 3, (5,)), ({17: math.inf, 22: math.inf}, 2, (1, 6)), ({45: 5e4}, 5, (5,))],
)
def test_samples_are_found_in_training(scales: dict[int, float], step: int, samples: tuple[int, ...]) -> None:
    """By the loss of their step, with dropout and BatchNorm; the others' loss is as usual."""
    trainer = quiet_trainer(Probe(), max_epochs=1)
    with pytest.raises(PoisonFound) as caught:
        trainer.fit(Poisoned(), poisoned_loader(scales))
    found = caught.value.finding
    assert (found.what, found.step, found.batch_idx, found.samples, found.size) == (
        "loss",
        step,
        step,
        samples,
        8,
    )
    assert found.rest is not None and math.isfinite(found.rest) and found.rest < 100
    assert not math.isfinite(found.alone) or found.alone > 100


def test_samples_that_spoil_gradients_alone_are_found() -> None:
    """The loss is finite, the gradient is not: found before the optimizer has stepped."""

    class Rooted(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, targets, scale = batch
            return torch.sqrt(((self.net(inputs) - targets) ** 2).squeeze(1) * scale).mean()

    trainer = quiet_trainer(Probe(), max_epochs=1, accumulate_grad_batches=2)
    with pytest.raises(PoisonFound) as caught:
        trainer.fit(Rooted(), poisoned_loader({26: 0.0}))
    found = caught.value.finding
    assert (found.what, found.step, found.batch_idx, found.samples) == ("gradients", 1, 3, (2,))


def test_training_that_is_well_is_left_alone() -> None:
    """The same weights come out, also with dropout, and the step is the module's own again."""
    nets = []
    for callbacks in ((), (Probe(),)):
        pl.seed_everything(5)
        net = Poisoned()
        quiet_trainer(*callbacks, max_epochs=2).fit(net, poisoned_loader({}))
        assert "training_step" not in net.__dict__
        nets.append(net)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_a_step_that_is_named_shows_its_heaviest_sample() -> None:
    """Also where its loss is none to worry about."""
    trainer = quiet_trainer(Probe(named=2), max_epochs=1)
    with pytest.raises(PoisonFound) as caught:
        trainer.fit(Poisoned(), poisoned_loader({19: 60.0}))
    assert (caught.value.finding.step, caught.value.finding.samples) == (2, (3,))
