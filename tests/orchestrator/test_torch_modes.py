"""Process-wide switches of torch: on during a call, as asked for, and as before after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import orchestrator as pl
from orchestrator.settings import Settings
from orchestrator.torch_modes import torch_modes
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Validated, loader, loss_of, quiet_trainer

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def switches() -> tuple[Any, ...]:
    """How torch is set."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.is_anomaly_enabled(),
        os.environ.get(WORKSPACE),
    )


class Looks(Validated):
    """Notes the switches within its steps."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.trained = switches()
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.tested = switches()


@pytest.mark.parametrize(
    ("arguments", "in_fit", "in_test"),
    [
        ({}, (False, False, False, False, None), (False, False, False, False, None)),
        (
            {"deterministic": True, "benchmark": True},
            (True, False, False, False, ":4096:8"),
            (True, False, False, False, ":4096:8"),
        ),
        (
            {"deterministic": "warn"},
            (True, True, False, False, ":4096:8"),
            (True, True, False, False, ":4096:8"),
        ),
        ({"benchmark": True}, (False, False, True, False, None), (False, False, True, False, None)),
    ],
)
def test_switches_hold_for_the_call(
    arguments: dict[str, Any], in_fit: Any, in_test: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """deterministic goes before benchmark, and both are undone when the call returns."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    before, module = switches(), Looks()
    trainer = quiet_trainer(**arguments)
    assert switches() == before
    trainer.fit(module, loader(4))
    trainer.test(module, loader(4), verbose=False)
    assert (module.trained, module.tested) == (in_fit, in_test)
    assert switches() == before


def test_switches_are_undone_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user had set comes back, also when a step raises."""
    monkeypatch.setenv(WORKSPACE, ":16:8")
    torch.backends.cudnn.benchmark = True
    try:
        before = switches()

        class Fails(Validated):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                raise KeyError(switches()[-1])

        with pytest.raises(KeyError, match=":16:8"):
            quiet_trainer(deterministic=True).fit(Fails(), loader(4))
        assert switches() == before
    finally:
        torch.backends.cudnn.benchmark = False


def test_what_is_not_deterministic_raises() -> None:
    """With deterministic=True an algorithm that has no such form is an error; without, it runs."""

    class Fills(Validated):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
            return loss_of(self.net, batch)

    quiet_trainer().fit(Fills(), loader(4))
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        quiet_trainer(deterministic=True).fit(Fills(), loader(4))


class Root(torch.autograd.Function):
    """A function whose gradient is not a number."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * float("nan")


@pytest.mark.filterwarnings("ignore:Error detected in RootBackward")
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomalies_are_found_in_fit() -> None:
    """detect_anomaly names the operation whose gradient is not a number."""

    class Breaks(Validated):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return Root.apply(loss_of(self.net, batch))

    with pytest.raises(RuntimeError, match=r"RootBackward.*returned nan"):
        quiet_trainer(detect_anomaly=True).fit(Breaks(), loader(4))
    assert not torch.is_anomaly_enabled()


def test_nothing_is_touched_that_was_not_asked_for() -> None:
    """Without these arguments the switches that the user has set stay in force."""
    torch.use_deterministic_algorithms(True)
    try:
        with torch_modes(Settings(), "fit"):
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.ray
def test_workers_are_set_too(tmp_path: Path) -> None:
    """On a group the switches hold on the workers, and not in the next call."""

    class Tells(Net):
        def on_train_start(self) -> None:
            self.found = (torch.are_deterministic_algorithms_enabled(), os.environ.get(WORKSPACE))

    module = Tells()
    group_trainer(tmp_path, max_epochs=1, deterministic=True).fit(module, group_loader(16))
    assert module.found == (True, ":4096:8")
    group_trainer(tmp_path, max_epochs=1).fit(module, group_loader(16))
    assert module.found == (False, None)


@pytest.mark.parametrize(("inference_mode", "outside"), [(True, True), (False, False)])
def test_inference_mode_is_for_calls_outside_of_fit(inference_mode: bool, outside: bool) -> None:
    """Validation within fit runs without gradients; a call of its own in inference mode."""
    seen: list[tuple[bool, bool]] = []

    class Asks(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    trainer: pl.Trainer = quiet_trainer(inference_mode=inference_mode)
    trainer.fit(Asks(), loader(4), loader(4))
    trainer.validate(Asks(), loader(4), verbose=False)
    assert seen == [(False, False), (outside, False)]


class Drawn(torch.utils.data.Dataset[Tensor]):
    """Samples that are random."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(4)


class Keeps(Validated):
    """Keeps what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.rows += batch[:, 0].tolist()
        return self.net(batch).mean()


def test_random_samples_are_keyed() -> None:
    """With deterministic=True what a data set draws depends on seed, epoch and sample alone."""
    found = {}
    for deterministic in (True, None):
        for seed in (1, 2):
            module = Keeps()
            torch.manual_seed(seed)
            source = torch.utils.data.DataLoader(Drawn(), batch_size=3 + seed)
            quiet_trainer(deterministic=deterministic, max_epochs=2).fit(module, source)
            found[deterministic, seed] = module.rows
    assert found[True, 1] == found[True, 2]
    assert len(set(found[True, 1])) == 16
    assert found[None, 1] != found[None, 2]
