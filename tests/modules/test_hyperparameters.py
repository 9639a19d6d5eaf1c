"""Hyperparameters: the arguments that a module was built with, and nothing else."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from modules.hyperparameters import AttributeDict, HyperparametersMixin


class All(HyperparametersMixin):
    def __init__(self, rate: float, width: int = 8, *layers: int, kind: str = "relu", **extra: Any) -> None:
        self.save_hyperparameters()


class Base(HyperparametersMixin):
    def __init__(self, rate: float, width: int = 8) -> None:
        self.save_hyperparameters()


class Derived(Base):
    """Passes on less than it takes."""

    def __init__(self, depth: int, width: int = 16, **rest: Any) -> None:
        super().__init__(width=width * 2, **rest)


class Ignoring(Base):
    """Keeps less than its base does."""

    def __init__(self, depth: int, net: object, rate: float) -> None:
        super().__init__(rate)
        self.save_hyperparameters(ignore=["net", "rate"])


@dataclasses.dataclass
class Config:
    rate: float = 0.5
    layers: list[int] = dataclasses.field(default_factory=lambda: [1, 2])


class Held(HyperparametersMixin):
    """Is given everything in one object."""

    def __init__(self, config: Any, extra: int = 0) -> None:
        self.save_hyperparameters(config)


class Chosen(HyperparametersMixin):
    """Keeps what it is told to keep."""

    def __init__(self, rate: float, width: int, *, how: Callable[[Chosen], None]) -> None:
        how(self)


def kept(how: Callable[[Chosen], None]) -> dict[str, Any]:
    """The hyperparameters of a `Chosen`, saved by a function that is called in its ``__init__``."""
    return dict(Chosen(0.1, 3, how=how).hparams)


def test_all_arguments_are_kept_by_default() -> None:
    """Positional, keyword-only and extra arguments are kept with their defaults; ``*layers`` is not."""
    assert All(0.1, 2, 5, 6, kind="gelu", seed=3).hparams == {
        "rate": 0.1,
        "width": 2,
        "kind": "gelu",
        "seed": 3,
    }
    assert All(0.1).hparams == {"rate": 0.1, "width": 8, "kind": "relu"}


def test_arguments_of_subclasses_are_included() -> None:
    """What the outermost class was given is kept, and wins where the base was given something else."""
    assert Derived(3, rate=0.1).hparams == {"depth": 3, "width": 16, "rate": 0.1}


def test_assignments_before_the_call_are_seen() -> None:
    """An argument that ``__init__`` has changed before it saves is kept as changed."""

    class Changed(HyperparametersMixin):
        def __init__(self, width: int | None = None) -> None:
            width = width or 32
            _ = lambda: (self, width)  # noqa: E731  # arguments that a closure holds are arguments still
            self.save_hyperparameters()

    assert Changed().hparams == {"width": 32}


def test_names_choose() -> None:
    """Given names, only these arguments are kept."""

    class Named(HyperparametersMixin):
        def __init__(self, rate: float, width: int) -> None:
            self.save_hyperparameters("width")

    assert Named(0.1, 3).hparams == {"width": 3}


@pytest.mark.parametrize("names", [("rat",), ("rate", "depth"), ("rate", 3), ({"a": 1}, {"b": 2})])
def test_wrong_names_are_refused(names: tuple[Any, ...]) -> None:
    """What is not the name of an argument is an error that lists the arguments."""
    with pytest.raises(ValueError, match=r"not names of arguments.*\['rate', 'width'\]"):

        class Wrong(HyperparametersMixin):
            def __init__(self, rate: float, width: int) -> None:
                self.save_hyperparameters(*names)

        Wrong(0.1, 3)


def test_ignored_names_are_left_out() -> None:
    """One name or several can be left out."""

    class One(HyperparametersMixin):
        def __init__(self, rate: float, net: object, width: int) -> None:
            self.save_hyperparameters(ignore="net")

    assert One(0.1, object(), 3).hparams == {"rate": 0.1, "width": 3}


def test_a_subclass_can_ignore_what_its_base_kept() -> None:
    """Names that a later call leaves out are gone, though an earlier call kept them."""
    module = Ignoring(2, object(), rate=0.1)
    assert module.hparams == {"width": 8, "depth": 2}
    assert module.hparams_initial == {"width": 8, "depth": 2}


@pytest.mark.parametrize(
    "config",
    [
        {"rate": 0.5, "layers": [1, 2]},
        argparse.Namespace(rate=0.5, layers=[1, 2]),
        Config(),
        AttributeDict(rate=0.5, layers=[1, 2]),
    ],
)
def test_one_object_can_hold_everything(config: Any) -> None:
    """Of a dictionary, namespace or dataclass the members are kept, and which argument held them."""
    module = Held(config)
    assert module.hparams == {"rate": 0.5, "layers": [1, 2]}
    assert module.hparams.rate == 0.5
    assert module._hparams_name == "config"
    assert Base(0.1)._hparams_name == "kwargs"


@pytest.mark.parametrize("config", [["rate"], None, 3, Config])
def test_other_objects_are_refused(config: Any) -> None:
    """What has no names and values is an error that says what can be given."""
    with pytest.raises(ValueError, match="names of arguments, a dictionary, a namespace or a dataclass"):
        Held(config)


def test_a_frame_can_be_given() -> None:
    """A function that saves on behalf of ``__init__`` passes the frame to read from."""

    def on_behalf(module: Chosen) -> None:
        frame = inspect.currentframe()
        assert frame is not None
        module.save_hyperparameters(frame=frame.f_back)

    assert sorted(kept(on_behalf)) == ["how", "rate", "width"]


def test_a_method_may_save_for_init() -> None:
    """Methods of the object between ``__init__`` and the call do not hide the arguments."""

    class Through(HyperparametersMixin):
        def __init__(self, rate: float) -> None:
            self.prepare(2)

        def prepare(self, unrelated: int) -> None:
            self.save_hyperparameters()

    assert Through(0.1).hparams == {"rate": 0.1}


def test_objects_that_build_others_do_not_lend_their_arguments() -> None:
    """Only the frames of the object itself count, not those of whoever builds it."""

    class Outer(HyperparametersMixin):
        def __init__(self, rate: float, depth: int) -> None:
            self.inner = Base(rate)
            self.save_hyperparameters()

    outer = Outer(0.1, 3)
    assert outer.inner.hparams == {"rate": 0.1, "width": 8}
    assert outer.hparams == {"rate": 0.1, "depth": 3}


def test_without_saving_there_are_none() -> None:
    """An object that saved nothing has empty hyperparameters of its own, which can be filled."""
    first, second = HyperparametersMixin(), HyperparametersMixin()
    first.hparams["rate"] = 1
    assert (first.hparams, second.hparams, first.hparams_initial) == ({"rate": 1}, {}, {})


def test_the_initial_values_stay() -> None:
    """Later changes of `hparams`, and of objects in it, do not change `hparams_initial`, nor do changes of
    what it returned.
    """
    module = Held(Config())
    module.hparams.layers.append(3)
    module.hparams.rate = 2.0
    module.hparams_initial.layers.append(4)
    assert module.hparams_initial == {"rate": 0.5, "layers": [1, 2]}


def test_loggers_can_be_left_out() -> None:
    """`logger` says whether loggers are given the hyperparameters; without saving they are not."""

    class Quiet(HyperparametersMixin):
        def __init__(self, rate: float) -> None:
            self.save_hyperparameters(logger=False)

    assert [HyperparametersMixin()._log_hyperparams, Base(0.1)._log_hyperparams] == [False, True]
    assert Quiet(0.1)._log_hyperparams is False


def test_hyperparameters_travel_with_the_object() -> None:
    """Copies, deep copies and pickles have the hyperparameters."""
    module = Derived(3, rate=0.1)
    for other in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.hparams == module.hparams
        assert type(other.hparams) is AttributeDict


def test_attributes_are_keys() -> None:
    """Reading, setting and deleting an attribute reads, sets and deletes the key."""
    values = AttributeDict(rate=0.1)
    values.width = 3
    del values.rate
    assert values == {"width": 3}
    assert copy.deepcopy(values).width == 3


@pytest.mark.parametrize("act", [lambda values: values.rat, lambda values: delattr(values, "rat")])
def test_missing_attributes_name_those_that_are_there(act: Callable[[AttributeDict], Any]) -> None:
    """The error lists the hyperparameters that there are."""
    with pytest.raises(AttributeError, match=r"No hyperparameter 'rat': there are \['rate'\]"):
        act(AttributeDict(rate=0.1))


def test_a_dataclass_can_be_the_object_itself() -> None:
    """A class made by `dataclass` saves its fields from __post_init__."""

    @dataclasses.dataclass
    class Own(HyperparametersMixin):
        rate: float
        width: int = 3

        def __post_init__(self) -> None:
            self.save_hyperparameters()

    assert Own(0.5).hparams == {"rate": 0.5, "width": 3}


def test_a_dictionary_of_equal_content_is_the_same_argument() -> None:
    """A copy of an argument is recognised as that argument."""
    config = {"rate": 0.1}

    class Copies(HyperparametersMixin):
        def __init__(self, config: dict[str, float]) -> None:
            self.save_hyperparameters(dict(config))

    assert Copies(config)._hparams_name == "config"


def test_what_cannot_be_copied_is_kept_as_it_is() -> None:
    """Locks and modules are not copied for `hparams_initial`; everything else is."""
    lock, net, sizes = threading.Lock(), nn.Linear(1, 1), [1]

    class Takes(HyperparametersMixin):
        def __init__(self, lock: Any, net: Any, sizes: list[int]) -> None:
            self.save_hyperparameters()

    initial = Takes(lock, net, sizes).hparams_initial
    assert initial.lock is lock
    assert initial.net is net
    assert initial.sizes is not sizes
