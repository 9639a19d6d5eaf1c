"""The small things that scripts import from `utilities`, beside Lightning's own."""

from __future__ import annotations

import logging
import random
import warnings
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import orchestrator as pl
from orchestrator.utilities.rank_zero import rank_zero_only
from orchestrator.utilities.seed import seed_everything
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.tiny import Tiny, loader, loss_of, network

utilities = pl.utilities


def with_gradients() -> nn.Module:
    net = network()
    loss_of(net, next(iter(loader(4)))).backward()
    net[3].bias.grad = None
    return net


def test_every_public_name_is_there() -> None:
    """All names load, and an unknown one is an error that lists them."""
    assert all(hasattr(utilities, name) for name in utilities.__all__)
    with pytest.raises(AttributeError, match=r"has no attribute 'grad_norms'.*grad_norm"):
        _ = utilities.grad_norms  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", [1, 2, "2", float("inf"), "inf"])
def test_norms_of_gradients(order: Any) -> None:
    """Each gradient's norm and that of all together, as one long vector; parameters without one are left
    out."""
    net = with_gradients()
    found = utilities.grad_norm(net, order)
    gradients = [item.grad for item in net.parameters() if item.grad is not None]
    assert len(found) == len(gradients) + 1 == 4
    whole = torch.cat([item.flatten() for item in gradients])
    torch.testing.assert_close(found[f"grad_{float(order)}_norm_total"], whole.norm(float(order)))


@pytest.mark.extras
@pytest.mark.parametrize("order", [1, 2, "inf"])
def test_norms_are_lightnings(order: Any) -> None:
    """Names and values are those of Lightning."""
    theirs = pytest.importorskip("lightning.pytorch.utilities").grad_norm(with_gradients(), order)
    ours = utilities.grad_norm(with_gradients(), order)
    assert list(ours) == list(theirs)
    assert [float(value) for value in ours.values()] == pytest.approx(
        [float(item) for item in theirs.values()]
    )


@pytest.mark.parametrize("order", [0, -1, "nan"])
def test_a_norm_of_no_order_is_refused(order: Any) -> None:
    """The order of a norm is above 0."""
    with pytest.raises(ValueError, match="Use a number above 0"):
        utilities.grad_norm(nn.Linear(1, 1), order)


def test_random_state_is_left_as_it_was() -> None:
    """After the context torch, Python and NumPy go on as if nothing had been drawn."""
    seed_everything(3, verbose=False)
    expected = torch.rand(1), random.random(), numpy.random.rand()
    seed_everything(3, verbose=False)
    with utilities.isolate_rng():
        torch.rand(5), random.random(), numpy.random.rand()
    assert (torch.rand(1), random.random(), numpy.random.rand()) == expected


def test_rank_zero_only_follows_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function runs where the launcher's rank is 0, and gives the default elsewhere."""
    said = rank_zero_only(lambda: "said")
    assert (rank_zero_only.rank, said()) == (0, "said")
    monkeypatch.setenv("RANK", "2")
    assert (rank_zero_only.rank, said(), rank_zero_only(lambda: 1, default=0)()) == (2, None, 0)


def test_messages_of_rank_zero(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Rank 0 logs and warns at the caller's line; others are silent."""
    caplog.set_level(logging.DEBUG, "orchestrator")
    with pytest.warns(UserWarning, match="mind this") as told:
        utilities.rank_zero_warn("mind this")
    assert told[0].filename == __file__
    utilities.rank_zero_info("at %d", 3)
    utilities.rank_zero_debug("detail")
    monkeypatch.setenv("RANK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        utilities.rank_zero_warn("not here")
    utilities.rank_zero_info("nor here")
    assert caplog.messages == ["at 3", "detail"]


def test_batches_move() -> None:
    """Tensors in nested containers are moved, the rest stays."""
    moved = utilities.move_data_to_device({"x": [torch.zeros(2)], "name": "a"}, "meta")
    assert moved["x"][0].device.type == "meta" and moved["name"] == "a"


def test_shared_parameters_are_found() -> None:
    """Each set of names of one parameter is given once."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert utilities.find_shared_parameters(net) == []
    net[1].weight = net[2].weight = net[0].weight
    assert utilities.find_shared_parameters(net) == [["0.weight", "1.weight", "2.weight"]]


class Speaks(Tiny):
    """Notes on which rank it ran."""

    @rank_zero_only
    def note(self) -> None:
        self.noted = rank_zero_only.rank

    def on_train_start(self) -> None:
        self.silent = self.note() is None and self.global_rank > 0


@pytest.mark.ray
def test_rank_zero_only_on_a_group(tmp_path: Any) -> None:
    """On workers the rank is that of the group."""
    module = Speaks()
    group_trainer(tmp_path, max_epochs=1).fit(module, loader(8))
    assert module.noted == 0 and module.silent is False
