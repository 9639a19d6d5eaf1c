"""A sweep over a module's own arguments: ``Sweep(Net, space, datamodule=..., trainer=dict(...))``.

Each trial builds the module from its configuration and fits it. A name in the space goes to the module's
constructor; where that does not take it, to the data module's, if its class was given; ``trainer.NAME`` goes
to the Trainer. A name that nobody takes is refused before anything starts, with the nearest one that somebody
does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError, suggest

_TRAINER = "trainer."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTraining:
    """What each trial calls; made by `module_training`.

    Attributes:
        module: The class of the module.
        datamodule: An instance, of which each trial gets a copy, or a class; None where the module has its
            own data.
        trainer: The Trainer's arguments.
    """

    module: type[LightningModule]
    datamodule: LightningDataModule | type[LightningDataModule] | None
    trainer: Mapping[str, Any]

    @property
    def __name__(self) -> str:
        """Return the module's name, under which Tune knows the trials."""
        return self.module.__name__

    def __call__(self, config: Mapping[str, Any]) -> None:
        """Build and fit the module of one configuration."""
        from orchestrator.trainer import Trainer

        parts = self.split(config)
        module = self.module(**parts["module"])
        data = self.datamodule
        if isinstance(data, type):
            data = data(**parts["datamodule"])
        Trainer(**{**self.trainer, **parts["trainer"]}).fit(module, datamodule=data)

    def split(self, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return a configuration's values by who takes them: module, datamodule or trainer."""
        parts: dict[str, dict[str, Any]] = {"module": {}, "datamodule": {}, "trainer": {}}
        for name, value in config.items():
            owner = self.owner(name)
            assert owner is not None, "names are checked when the sweep is made"
            parts[owner][name.removeprefix(_TRAINER) if owner == "trainer" else name] = value
        return parts

    def owner(self, name: str) -> str | None:
        """Return who takes this name of a space; None when nobody does."""
        if name.startswith(_TRAINER):
            return "trainer"
        if _takes(self.module, name):
            return "module"
        if isinstance(self.datamodule, type) and _takes(self.datamodule, name):
            return "datamodule"
        return None


def module_training(
    module: type[LightningModule], names: Iterable[str], datamodule: Any, trainer: Mapping[str, Any] | None
) -> ModuleTraining:
    """Return what each trial calls.

    Args:
        module: The class of the module.
        names: The names in the space.
        datamodule: A data module or its class, or None.
        trainer: The Trainer's arguments, or None for its defaults.

    Raises:
        MisconfigurationError: Nobody takes one of the names, or an argument is of the wrong kind, or the
            module needs an argument that the space lacks.
    """
    is_class = isinstance(datamodule, type) and issubclass(datamodule, LightningDataModule)
    if datamodule is not None and not is_class and not isinstance(datamodule, LightningDataModule):
        raise MisconfigurationError(
            f"Sweep(datamodule={datamodule!r}) is a {type(datamodule).__name__}. Give a "
            "LightningDataModule, or "
            "its class."
        )
    if trainer is not None and not isinstance(trainer, Mapping):
        raise MisconfigurationError(
            f"Sweep(trainer={trainer!r}) is a {type(trainer).__name__}. Give the Trainer's arguments: "
            "dict(max_epochs=5)."
        )
    training = ModuleTraining(module=module, datamodule=datamodule, trainer=dict(trainer or {}))
    given = list(names)
    for name in given:
        if training.owner(name) is None:
            raise MisconfigurationError(_refusal(training, name))
    missing = [name for name in _required(module) if name not in given]
    if missing:
        raise MisconfigurationError(
            f"Sweep({module.__name__}, space=...) lacks {', '.join(missing)}, which {module.__name__} needs. "
            "Add them to the space; a plain value is the same in all trials."
        )
    return training


def _refusal(training: ModuleTraining, name: str) -> str:
    known = _known(training.module)
    takers = [training.module.__name__]
    if isinstance(training.datamodule, type):
        known += _known(training.datamodule)
        takers.append(training.datamodule.__name__)
    return (
        f"Sweep(space=...): {' and '.join(takers)} {'take' if len(takers) > 1 else 'takes'} no {name!r}."
        f"{suggest(name, known)} {'They take' if len(takers) > 1 else 'It takes'} {sorted(set(known))}; "
        "the Trainer's "
        f"arguments are called 'trainer.NAME'."
    )


def _parameters(owner: Callable[..., object]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(owner).parameters)


def _takes(owner: type, name: str) -> bool:
    parameters = _parameters(owner)
    return name in parameters or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _known(owner: type) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, parameter in _parameters(owner).items() if parameter.kind not in kinds]


def _required(owner: type) -> list[str]:
    return [name for name in _known(owner) if _parameters(owner)[name].default is inspect.Parameter.empty]
