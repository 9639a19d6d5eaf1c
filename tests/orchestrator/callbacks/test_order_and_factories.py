"""In which order callbacks run, and where they come from besides the Trainer's argument."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import Checkpoint, ModelCheckpoint, Timer, factories
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer


class Tunes(pl.Callback):
    """Finds out a setting."""

    tunes = True


class Own(Checkpoint):
    """Saves in a way of its own; notes when an epoch ends."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append("checkpoint")


def make_timer() -> Timer:
    """A factory."""
    return Timer()


def make_several() -> list[pl.Callback]:
    """A factory of several, of which one saves."""
    return [Own([]), Tunes()]


def make_nothing() -> str:
    """No factory."""
    return "timer"


def install(monkeypatch: pytest.MonkeyPatch, *functions: str) -> None:
    """Make the functions of this file entry points."""
    entries = tuple(EntryPoint(name, f"{__name__}:{name}", factories.GROUP) for name in functions)
    monkeypatch.setattr(factories, "_found", lambda: entries)
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.name])


def test_tuners_come_first_and_checkpoints_last(tmp_path: Path) -> None:
    """Others keep the order in which they were given."""
    one, other, tunes, saves, own = pl.Callback(), pl.Callback(), Tunes(), ModelCheckpoint(tmp_path), Own([])
    trainer = quiet_trainer(saves, one, own, tunes, other, enable_checkpointing=True)
    assert trainer.callbacks == [tunes, one, other, saves, own]


def test_checkpoints_see_the_end_of_an_epoch_after_the_module() -> None:
    """A Checkpoint of one's own runs behind the module's hook, where other callbacks run before it."""
    seen: list[str] = []

    class Says(Tiny):
        def on_train_epoch_end(self) -> None:
            seen.append("module")

    class Before(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append("callback")

    quiet_trainer(Own(seen), Before(), enable_checkpointing=True).fit(Says(), loader(4))
    assert seen == ["callback", "module", "checkpoint"]


def test_the_modules_own_callbacks_take_their_places(tmp_path: Path) -> None:
    """What configure_callbacks returns replaces others of its class and is sorted in."""

    class Brings(Tiny):
        def configure_callbacks(self) -> Any:
            return [Timer("00:01:00:00"), Own([])]

    first = Timer()
    trainer = quiet_trainer(first, pl.Callback())
    trainer.fit(Brings(), loader(4))
    assert [type(item) for item in trainer.callbacks] == [pl.Callback, Timer, Own]
    assert first not in trainer.callbacks


def test_installed_packages_add_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Trainer gets new callbacks of every factory, in their places."""
    install(monkeypatch, "make_several", "make_timer")
    trainers = [quiet_trainer(pl.Callback()) for _ in range(2)]
    assert [type(item) for item in trainers[0].callbacks] == [Tunes, pl.Callback, Timer, Own]
    assert trainers[0].callbacks[0] is not trainers[1].callbacks[0]


def test_a_factory_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the entry point and what it returned."""
    install(monkeypatch, "make_nothing")
    with pytest.raises(MisconfigurationError, match=r"make_nothing = .*returned 'timer'"):
        quiet_trainer()


def test_state_is_there_when_fit_starts(tmp_path: Path) -> None:
    """On resuming, a callback has its state in on_fit_start, and the counters are restored behind it."""

    class Remembers(pl.Callback):
        def __init__(self) -> None:
            self.count = 0
            self.seen: list[Any] = []

        def state_dict(self) -> dict[str, Any]:
            return {"count": 7}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.count = state_dict["count"]

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.seen.append((self.count, trainer.global_step))

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.seen.append((self.count, trainer.global_step))

    trainer = quiet_trainer(Remembers())
    trainer.fit(Tiny(), loader(8))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Remembers()
    quiet_trainer(again, max_epochs=2).fit(Tiny(), loader(8), ckpt_path=tmp_path / "a.ckpt")
    assert again.seen == [(7, 0), (7, 2)]
