"""A loss given as a sum and its count weighs every element alike, over micro-batches as in a large batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.loss import LossCounts
from orchestrator.strategies.single import Alone
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, network, points, quiet_trainer

WEIGHTS = torch.tensor([float(index * 7 % 5) for index in range(40)])  # some samples have no token at all


def weighted(length: int, batch_size: int = 4) -> DataLoader[Any]:
    """A loader of (input, target, number of tokens)."""
    data = points(length)
    rows = [(*data[index], WEIGHTS[index]) for index in range(length)]
    return DataLoader(rows, batch_size=batch_size)  # type: ignore[arg-type]


def sums(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The sum of losses over a batch's tokens, and their number."""
    inputs, targets, tokens = batch
    return ((net(inputs) - targets).square().squeeze(1) * tokens).sum(), tokens.sum()


class Tokens(Tiny):
    """Returns sums and counts, in double precision unless told otherwise.

    Args:
        kind: How the count is given: a tensor or a number.
    """

    def __init__(self, kind: str = "tensor", double: bool = True) -> None:
        super().__init__()
        self.kind = kind
        if double:
            self.double()
        self.seen: list[dict[str, Any]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch = [item.to(self.dtype) for item in batch]
        total, count = sums(self.net, batch)
        return {"loss_sum": total, "loss_count": count if self.kind == "tensor" else int(count), "more": 1}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(outputs)


def plain(length: int, samples_a_step: int, clip: float | None = None) -> nn.Module:
    """The network after one pass in which each step is one large batch."""
    net = network().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in weighted(length, samples_a_step):
        total, count = sums(net, [item.double() for item in batch])
        (total / count).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return net


def assert_close(module: nn.Module, net: nn.Module) -> None:
    for name, item in net.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], item, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["tensor", "number"])
@pytest.mark.parametrize(("length", "accumulate", "clip"), [(40, 1, None), (38, 3, None), (38, 4, 0.05)])
def test_micro_batches_equal_one_large_batch(
    kind: str, length: int, accumulate: int, clip: float | None
) -> None:
    """The gradient of a step is that of the sum of all sums over the sum of all counts."""
    module = Tokens(kind)
    quiet_trainer(accumulate_grad_batches=accumulate, gradient_clip_val=clip).fit(module, weighted(length))
    assert_close(module.net, plain(length, 4 * accumulate, clip))


class Stream(IterableDataset[Any]):
    """The rows of `weighted`, of a length that nobody can know."""

    def __iter__(self) -> Any:
        return iter(weighted(38).dataset)


def test_a_window_that_ends_with_its_stream_is_weighed_by_what_it_had() -> None:
    """Where only the missing next batch shows that a window was the last, its counts hold as elsewhere."""
    module = Tokens()
    quiet_trainer(accumulate_grad_batches=3).fit(module, DataLoader(Stream(), batch_size=4))
    assert_close(module.net, plain(38, 12))


def test_a_batch_alone_equals_the_mean() -> None:
    """Without accumulation the weights are those of training on the mean, up to rounding."""

    class Mean(Tokens):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            outputs = super().training_step(batch, batch_idx)
            return outputs["loss_sum"] / outputs["loss_count"]

    summed, mean = Tokens(), Mean()
    for module in (summed, mean):
        quiet_trainer(max_epochs=2).fit(module, weighted(40))
    assert_close(summed.net, mean.net)


def test_hooks_see_what_was_returned_and_the_mean() -> None:
    """outputs is the step's dictionary with "loss", the sum over the count, without a graph."""
    module = Tokens()
    quiet_trainer(accumulate_grad_batches=2).fit(module, weighted(8))
    for outputs in module.seen:
        assert outputs.keys() == {"loss_sum", "loss_count", "more", "loss"}
        torch.testing.assert_close(outputs["loss"], outputs["loss_sum"] / outputs["loss_count"])
        assert not outputs["loss"].requires_grad


@pytest.mark.parametrize("kind", ["tensor", "number"])
def test_a_window_without_a_token_gives_gradients_of_zero(kind: str) -> None:
    """Counts that add up to 0 change nothing; a batch without a token among others weighs nothing."""
    data = [[*points(4)[:], torch.tensor(tokens)] for tokens in ([0.0] * 4, [0.0, 3.0, 0.0, 1.0], [0.0] * 4)]
    module, net = Tokens(kind), network().double()
    quiet_trainer().fit(module, data[:1])
    assert_equal_weights(module.net, net)
    assert module.seen[0]["loss"].isnan()

    quiet_trainer(accumulate_grad_batches=3).fit(module, data)
    total, count = sums(net, [item.double() for item in data[1]])
    (total / count).backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert_close(module.net, net)


def test_fp16_scales_and_clips_as_elsewhere() -> None:
    """Under 16-mixed hooks before the step see the gradient of the mean, unscaled."""
    norms: list[float] = []

    class Watches(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 16.0})

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = [item.grad for item in pl_module.parameters()]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    expected = plain_norm(network())
    trainer = quiet_trainer(Watches(), precision="16-mixed", gradient_clip_val=1e9)
    trainer.fit(Tokens(double=False), weighted(8, 8))
    assert norms == [pytest.approx(expected, rel=1e-2)]


def plain_norm(net: nn.Module) -> float:
    """The norm of the gradient of the mean over eight samples."""
    total, count = sums(net, next(iter(weighted(8, 8))))
    (total / count).backward()
    return float(torch.nn.utils.get_total_norm([item.grad for item in net.parameters()]))


def test_an_overridden_optimizer_step_weighs_alike() -> None:
    """The closure form runs the same arithmetic."""

    class Own(Tokens):
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
        ) -> None:
            optimizer.step(closure=optimizer_closure)

    module = Own()
    quiet_trainer(accumulate_grad_batches=3).fit(module, weighted(38))
    assert_close(module.net, plain(38, 12))


@pytest.mark.parametrize("first", ["sum", "loss"])
def test_one_form_for_a_run(first: str) -> None:
    """A run that returns sums for some batches and losses for others is refused, with both named."""

    class Mixes(Tokens):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            outputs = super().training_step(batch, batch_idx)
            return outputs if (batch_idx == 0) == (first == "sum") else outputs["loss_sum"]

    words = ("a loss", "'loss_sum' and 'loss_count'")[:: 1 if first == "sum" else -1]
    with pytest.raises(
        MisconfigurationError, match=f"returned {words[0]}, and in an earlier batch {words[1]}"
    ):
        quiet_trainer().fit(Mixes(), weighted(8))


ONE = torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"loss_sum": ONE}, r"keys \['loss_sum'\]. Return 'loss', or 'loss_sum' together with 'loss_count'"),
        ({"loss_count": 3, "loss": ONE}, r"keys \['loss', 'loss_count'\]"),
        ({"loss_sum": ONE, "loss_count": -1}, r"'loss_count' -1\. Return the number"),
        ({"loss_sum": ONE, "loss_count": torch.tensor(-2.0)}, r"'loss_count' tensor\(-2\.\)"),
        ({"loss_sum": ONE, "loss_count": float("nan")}, r"'loss_count' nan"),
        ({"loss_sum": ONE, "loss_count": "many"}, r"'loss_count' 'many'"),
        ({"loss_sum": ONE, "loss_count": torch.ones(2)}, r"'loss_count' tensor\(\[1\., 1\.\]\)"),
        ({"loss_sum": ONE.expand(2), "loss_count": 2}, r"a tensor of shape \(2,\) as 'loss_sum'"),
        ({"loss_sum": 0.5, "loss_count": 2}, r"0\.5 as 'loss_sum'"),
    ],
)
def test_what_is_no_sum_is_refused(returned: Any, message: str) -> None:
    """A missing, negative or unreadable part is an error that says what was found."""

    class Returns(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return returned

    with pytest.raises(MisconfigurationError, match=message):
        quiet_trainer().fit(Returns(), loader(4))


def test_a_negative_sum_of_counts_on_a_device_shows() -> None:
    """Where reading a count would wait for a device, a negative total makes gradients NaN."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    counts = LossCounts()
    counts._on_device = torch.tensor(-1.0, dtype=torch.float64)
    counts.scale([parameter], Alone(torch.device("cpu")))
    assert parameter.grad.isnan().all()
