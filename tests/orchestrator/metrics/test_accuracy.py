"""Accuracy: what it counts, and that counting neither waits nor gets in the way of training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

import orchestrator as pl
from orchestrator.metrics import Accuracy


@pytest.mark.parametrize(
    ("preds", "target", "expected"),
    [
        ([[0.1, 0.9], [0.8, 0.2], [3.0, -1.0]], [1, 1, 0], 2 / 3),
        ([0.2, 0.5, 0.9], [0, 1, 0], 2 / 3),
        ([-3.0, 0.4, 0.2], [0, 1, 0], 2 / 3),
        ([2, 1, 0, 0], [2, 1, 1, 1], 0.5),
        ([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [1, 1]], 0.75),
        ([True, False], [True, True], 0.5),
        ([[[0.9, 0.1], [0.1, 0.9]]], [[0, 1]], 1.0),
    ],
    ids=["scores", "probabilities", "logits", "labels", "several labels", "booleans", "two dimensions"],
)
def test_logits_probabilities_and_labels_are_told_apart(
    preds: list[float], target: list[int], expected: float
) -> None:
    """Scores of classes, probabilities, logits and labels each count as they are meant."""
    accuracy = Accuracy()
    assert accuracy(torch.tensor(preds), torch.tensor(target)).item() == pytest.approx(expected)
    assert accuracy.compute().item() == pytest.approx(expected)


def test_batches_are_weighed_by_their_samples() -> None:
    """The accuracy of several batches is that of all samples together; reset forgets them."""
    accuracy = pl.metrics.Accuracy()
    accuracy.update(torch.tensor([1, 1, 1]), torch.tensor([1, 1, 0]))
    assert accuracy(torch.tensor([0]), torch.tensor([1])).item() == 0.0
    assert accuracy.compute().item() == 0.5
    accuracy.reset()
    assert accuracy.compute().isnan()


def test_counts_are_exact_beyond_what_a_float_counts() -> None:
    """Counts are whole numbers of 64 bits, which merge without loss."""
    accuracy = Accuracy()
    accuracy.merge_state({"correct": torch.tensor(2**53), "total": torch.tensor(2**53)})
    accuracy.update(torch.tensor([1]), torch.tensor([1]))
    assert accuracy.metric_state["correct"].item() == accuracy.metric_state["total"].item() == 2**53 + 1
    assert accuracy.metric_state["correct"].dtype is torch.int64


def test_the_threshold_is_a_probability() -> None:
    """Another threshold decides otherwise; one that is no probability is refused."""
    preds, target = torch.tensor([0.4, 0.6]), torch.tensor([1, 1])
    assert Accuracy(threshold=0.3)(preds, target).item() == 1.0
    with pytest.raises(ValueError, match=r"threshold=2.*from 0 to 1"):
        Accuracy(threshold=2)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    """Predictions and targets of unrelated shapes are refused, naming both."""
    with pytest.raises(ValueError, match=r"\(3, 2\) for a target of shape \(2,\)"):
        Accuracy()(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))


def test_it_is_no_part_of_the_weights() -> None:
    """Counts are neither parameters nor buffers, so checkpoints and data parallel training ignore them."""
    accuracy = Accuracy()
    assert (accuracy.state_dict(), list(accuracy.buffers()), list(accuracy.parameters())) == ({}, [], [])


def test_it_copies_with_its_counts() -> None:
    """A copy and a pickle have counted what the original has."""
    accuracy = Accuracy()
    accuracy.update(torch.tensor([1, 0]), torch.tensor([1, 1]))
    for twin in (copy.deepcopy(accuracy), pickle.loads(pickle.dumps(accuracy))):
        assert twin.compute().item() == 0.5


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_counting_reads_nothing(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither counting nor computing brings a value to the host."""

    def refuse(*args: object) -> None:
        raise AssertionError("the host waits for the device")

    for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, refuse)
    accuracy = Accuracy()
    accuracy(torch.rand(shape), torch.ones(4, dtype=torch.long))
    accuracy.compute()
