"""Every form of what configure_optimizers may return, and every form that cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR

from orchestrator.errors import MisconfigurationError
from orchestrator.optimizers import SchedulerConfig, parse
from tests.orchestrator.tiny import Tiny, Validated, loader, loss_of, quiet_trainer


def optimizer() -> Optimizer:
    """A new optimizer of a parameter of its own."""
    return SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


ONE = optimizer()
STEP = StepLR(ONE, 1)
PLATEAU = ReduceLROnPlateau(ONE)


class OwnScheduler:
    """A scheduler that is none of torch's."""

    def step(self, metric: Any = None) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {"own": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing."""


OWN = OwnScheduler()
TWO = optimizer()

FORMS: dict[str, tuple[Any, list[Optimizer], list[SchedulerConfig]]] = {
    "nothing": (None, [], []),
    "an optimizer": (ONE, [ONE], []),
    "a list": ([ONE], [ONE], []),
    "a tuple of two": ((ONE, TWO), [ONE, TWO], []),
    "two lists": (([ONE], [STEP]), [ONE], [SchedulerConfig(scheduler=STEP)]),
    "two lists, no scheduler": (([ONE], []), [ONE], []),
    "lists with a configuration": (
        ([ONE], [{"scheduler": STEP, "interval": "step", "frequency": 3, "name": "rate"}]),
        [ONE],
        [SchedulerConfig(scheduler=STEP, interval="step", frequency=3, name="rate")],
    ),
    "a list and a configuration": (
        ([ONE], {"scheduler": STEP, "interval": "step"}),
        [ONE],
        [SchedulerConfig(scheduler=STEP, interval="step")],
    ),
    "a dictionary": ({"optimizer": ONE}, [ONE], []),
    "a dictionary with a scheduler": (
        {"optimizer": ONE, "lr_scheduler": STEP},
        [ONE],
        [SchedulerConfig(scheduler=STEP)],
    ),
    "a dictionary with a plateau": (
        {"optimizer": ONE, "lr_scheduler": PLATEAU, "monitor": "loss"},
        [ONE],
        [SchedulerConfig(scheduler=PLATEAU, monitor="loss", reduce_on_plateau=True)],
    ),
    "a dictionary in a dictionary": (
        {"optimizer": ONE, "lr_scheduler": {"scheduler": PLATEAU, "monitor": "loss", "strict": False}},
        [ONE],
        [SchedulerConfig(scheduler=PLATEAU, monitor="loss", strict=False, reduce_on_plateau=True)],
    ),
    "several dictionaries": (
        [{"optimizer": ONE, "lr_scheduler": STEP}, {"optimizer": TWO}],
        [ONE, TWO],
        [SchedulerConfig(scheduler=STEP)],
    ),
    "a scheduler of one's own": (
        {"optimizer": ONE, "lr_scheduler": {"scheduler": OWN, "reduce_on_plateau": True, "monitor": "x"}},
        [ONE],
        [SchedulerConfig(scheduler=OWN, monitor="x", reduce_on_plateau=True)],
    ),
}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a string": (lambda: "adam", r"returned a str\. Return an optimizer"),
    "the class": (lambda: SGD, r"returned a type\. Return an optimizer"),
    "parameters": (lambda: [nn.Parameter(torch.zeros(1))], r"a list of \['Parameter'\]"),
    "optimizer and scheduler": (lambda: (ONE, STEP), r"\(optimizer, scheduler\)\. Return \(\[optimizer\]"),
    "a dictionary without optimizer": (
        lambda: {"lr_scheduler": STEP},
        r"keys \['lr_scheduler'\] and a NoneType",
    ),
    "a list of optimizers in a dictionary": (
        lambda: {"optimizer": [ONE]},
        r"a list of \['SGD'\] as 'optimizer'",
    ),
    "an optimizer as scheduler": (lambda: ([ONE], [TWO]), r"a SGD as a scheduler.*state_dict\(\)"),
    "a list of schedulers in a dictionary": (
        lambda: {"optimizer": ONE, "lr_scheduler": [STEP]},
        r"a list of \['StepLR'\] as a scheduler",
    ),
    "no scheduler in the dictionary": (
        lambda: ([ONE], [{"interval": "step"}]),
        r"keys \['interval'\], but no 'scheduler'",
    ),
    "an unknown interval": (
        lambda: ([ONE], [{"scheduler": STEP, "interval": "steps"}]),
        r"interval='steps' is unknown\. Did you mean 'step'\?",
    ),
    "a frequency of 0": (
        lambda: ([ONE], [{"scheduler": STEP, "frequency": 0}]),
        r"frequency=0\. Use a whole number of at least 1",
    ),
    "a plateau without metric": (
        lambda: ([ONE], [PLATEAU]),
        r"ReduceLROnPlateau needs a metric.*'monitor': 'val_loss'\}",
    ),
    "a plateau of one's own without metric": (
        lambda: ([ONE], [{"scheduler": OWN, "reduce_on_plateau": True}]),
        "OwnScheduler needs a metric to watch",
    ),
    "a scheduler of another optimizer": (
        lambda: ([TWO], [STEP]),
        r"a StepLR of an optimizer that it did not return",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_understood(form: str) -> None:
    """What is returned becomes a list of the user's own optimizers and one of scheduler configurations."""
    returned, optimizers, schedulers = FORMS[form]
    found_optimizers, found_schedulers = parse(returned)
    assert all(one is other for one, other in zip(found_optimizers, optimizers, strict=True))
    assert found_schedulers == schedulers


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_work_is_refused(form: str) -> None:
    """The error says what was returned and what to return."""
    returned, message = REFUSED[form]
    with pytest.raises(MisconfigurationError, match=message):
        parse(returned())


@pytest.mark.parametrize(
    ("returned", "hint"),
    [
        ({"optimizer": ONE, "lr_schedulers": STEP}, r"\['lr_schedulers'\]\. Did you mean 'lr_scheduler'\?"),
        (
            {"optimizer": ONE, "lr_scheduler": {"scheduler": STEP, "intervall": "step"}},
            "Did you mean 'interval'",
        ),
    ],
)
def test_unknown_keys_are_mentioned(returned: Any, hint: str) -> None:
    """A key that means nothing is ignored with a warning that names the one that was meant."""
    with pytest.warns(UserWarning, match=hint):
        parse(returned)


def test_several_optimizers_are_refused() -> None:
    """Automatic optimization steps one optimizer; several are refused with what to do."""

    def configure(parameters: Any) -> Any:
        first, *rest = parameters
        return [SGD([first], lr=0.1), SGD(rest, lr=0.1)]

    with pytest.raises(
        MisconfigurationError,
        match=r"returned 2 optimizers.*put all parameters into its groups.*automatic_optimization = False",
    ):
        quiet_trainer().fit(Tiny(configure), loader(4))


def test_a_scheduler_of_ones_own_needs_a_hook_that_steps_it() -> None:
    """A scheduler that is none of torch's is refused, unless the module overrides lr_scheduler_step."""

    class Foreign:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            """Do nothing."""

    def configure(parameters: Any) -> Any:
        return [SGD(parameters, lr=0.1)], [Foreign()]

    with pytest.raises(MisconfigurationError, match=r"a Foreign as a scheduler.*define lr_scheduler_step"):
        quiet_trainer().fit(Tiny(configure), loader(4))

    class Steps(Tiny):
        stepped = 0

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.stepped += isinstance(scheduler, Foreign)

    module = Steps(configure)
    quiet_trainer(max_epochs=2).fit(module, loader(4))
    assert module.stepped == 2


@pytest.mark.parametrize("returned", [None, [], ([], [])])
def test_no_optimizer_trains_nothing_and_says_so(returned: Any) -> None:
    """Without an optimizer training_step runs, steps are counted and limited, and a warning tells."""
    module = Tiny(lambda parameters: returned)
    before = module.net[0].weight.clone()
    trainer = quiet_trainer(max_epochs=-1, max_steps=3, accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match="configure_optimizers returned no optimizer"):
        trainer.fit(module, loader(16))
    assert trainer.global_step == 3
    assert torch.equal(module.net[0].weight, before)
    assert module.net[0].weight.grad is None


def test_a_scheduler_of_ones_own_is_stepped_through_the_hook() -> None:
    """lr_scheduler_step of the module is called with the scheduler, and with the metric of a plateau."""
    calls: list[tuple[str, Any]] = []

    class Steps(Validated):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            calls.append((type(scheduler).__name__, None if metric is None else float(metric)))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("watched", 5.0)

    def configure(parameters: Any) -> Any:
        built = SGD(parameters, lr=0.1)
        return [built], [
            {"scheduler": OWN, "reduce_on_plateau": True, "monitor": "watched"},
            {"scheduler": LambdaLR(built, lambda epoch: 1.0), "frequency": 2},
            {"scheduler": StepLR(built, 1), "interval": "step", "frequency": 2},
            {"scheduler": ReduceLROnPlateau(built), "interval": "step", "monitor": "watched"},
        ]

    quiet_trainer(max_epochs=2).fit(Steps(configure), loader(8), loader(4))
    epoch = [("StepLR", None), ("ReduceLROnPlateau", 5.0), ("OwnScheduler", 5.0)]
    assert calls == [*epoch, epoch[0], ("LambdaLR", None), *epoch[1:]]


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_metric_that_is_missing_stops_a_strict_plateau(interval: str) -> None:
    """A plateau scheduler without its metric is an error that lists what was logged, unless not strict."""

    def configure(strict: bool) -> Callable[[Any], Any]:
        def build(parameters: Any) -> Any:
            built = SGD(parameters, lr=0.1)
            config = {
                "scheduler": ReduceLROnPlateau(built),
                "monitor": "nothing",
                "strict": strict,
                "interval": interval,
            }
            return {"optimizer": built, "lr_scheduler": config}

        return build

    with pytest.raises(
        MisconfigurationError, match=r"watches 'nothing', which was not logged.*\['val_loss'\]"
    ):
        quiet_trainer().fit(Validated(configure(True)), loader(8), loader(4))
    with pytest.warns(UserWarning, match="watches 'nothing'"):
        quiet_trainer().fit(Validated(configure(False)), loader(8), loader(4))


def test_plateaus_watch_the_validation_that_has_just_run() -> None:
    """With interval "step" a plateau steps after each validation, before on_validation_end."""
    rates: list[float] = []

    class Looks(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", 1.0)

        def on_validation_end(self) -> None:
            rates.append(self.optimizers().param_groups[0]["lr"])

    def configure(parameters: Any) -> Any:
        built = SGD(parameters, lr=1.0)
        plateau = ReduceLROnPlateau(built, patience=0, factor=0.5)
        return {
            "optimizer": built,
            "lr_scheduler": {"scheduler": plateau, "interval": "step", "monitor": "val_loss"},
        }

    quiet_trainer(max_epochs=2, val_check_interval=2).fit(Looks(configure), loader(16), loader(4))
    assert rates == [1.0, 0.5, 0.25, 0.125]


def test_the_module_finds_its_optimizer_and_scheduler() -> None:
    """self.optimizers(False), .optimizer and self.lr_schedulers() return the user's own objects."""
    found: list[Any] = []

    class Looks(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.optimizers().optimizer is self.trainer.strategy.optimizers[0]
            found.append((self.optimizers(use_pl_optimizer=False), self.lr_schedulers()))
            return loss_of(self.net, batch)

    built: list[tuple[Optimizer, LRScheduler]] = []

    def configure(parameters: Any) -> Any:
        optimizer = SGD(parameters, lr=0.1)
        built.append((optimizer, StepLR(optimizer, 1)))
        return [built[0][0]], [built[0][1]]

    quiet_trainer().fit(Looks(configure), loader(4))
    assert found == built
