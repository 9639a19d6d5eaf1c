"""Pickling, and naming what cannot be pickled: `serialization`."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cluster import SerializationError
from cluster.serialization import dump, dump_call, dump_fast, find_culprit, load


class Holder:
    """An object that holds whatever it is given."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def method(self) -> None:
        """Nothing; a bound method drags its object along."""


def test_what_is_loaded_is_a_private_copy() -> None:
    """The receiver may change what it got."""
    import torch

    weights = torch.zeros(3)
    copy = load(dump({"weights": weights}, "weights"))
    copy["weights"] += 1
    assert weights.tolist() == [0, 0, 0]


def test_closures_travel_by_value() -> None:
    """A function that is defined inside another one can be sent."""
    offset = 3
    assert load(dump(lambda x: x + offset, "a lambda"))(4) == 7


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda lock: Holder(model=Holder(parts=[1, {"lock": lock}])), ".model.parts[1]['lock']"),
        (lambda lock: lock, ""),
        (lambda lock: Holder(lock=lock).method, ".__self__.lock"),
        (lambda lock: lambda: lock, ".lock"),
    ],
    ids=["attributes", "itself", "method", "closure"],
)
def test_the_attribute_at_fault_is_found(make: Any, path: str) -> None:
    """The innermost part that cannot be pickled is named by the way to it."""
    lock = threading.Lock()
    assert find_culprit(make(lock)) == (path, lock)


def test_a_cycle_does_not_stop_the_search() -> None:
    """Objects that refer to each other are looked at once."""
    one, two = Holder(), Holder(lock=threading.Lock())
    one.two, two.one = two, one  # type: ignore[attr-defined]
    assert find_culprit(one)[0] == ".two.lock"


def test_the_message_names_the_argument() -> None:
    """A user reads which argument it was, which part of it, and what to do."""
    with pytest.raises(
        SerializationError, match=r"Argument 2 of print .* its model is a _thread\.lock.* Create it"
    ):
        dump_call(print, (1, Holder(model=threading.Lock())))


def test_a_serialization_error_is_a_type_error() -> None:
    """Callers may catch what pickle itself raises."""
    with pytest.raises(TypeError, match="An event"):
        dump_fast(threading.Lock(), "An event")


def test_classes_of_main_come_back_as_the_same_class() -> None:
    """A class that only `__main__` has goes by value, and is the same class when it returns."""
    Event = type("Event", (), {"__module__": "__main__"})
    returned = load(dump_fast(Event(), "an event"))
    assert type(returned) is Event


def test_tensors_travel_beside_the_pickle_and_arrive_as_they_were() -> None:
    """Their memory is no part of the pickle; types, views and what is shared come back."""
    import torch

    base = torch.arange(1000, dtype=torch.float32)
    tied = torch.nn.Parameter(torch.randn(100, 100))
    value = {
        "view": base[10:20],
        "transposed": torch.arange(6).reshape(2, 3).t(),
        "bf16": torch.randn(5).bfloat16(),
        "empty": torch.empty(0, 3),
        "tied": [tied, tied],
        "module": torch.nn.Linear(50, 50),
        "meta": torch.empty(3, device="meta"),
    }
    parcel = dump(value, "weights")
    assert len(parcel.data) < 10_000 < sum(len(part) for part in parcel.memory)
    copy = load(parcel)
    for name in ("view", "transposed", "bf16", "empty"):
        assert torch.equal(copy[name], value[name]) and copy[name].dtype == value[name].dtype
        assert copy[name].stride() == value[name].stride()
    assert copy["tied"][0] is copy["tied"][1] and torch.equal(copy["tied"][0], tied)
    assert copy["meta"].device.type == "meta"
    with torch.no_grad():
        copy["module"].weight.zero_()
        copy["view"].zero_()
    assert value["module"].weight.any() and base[10:20].all()
