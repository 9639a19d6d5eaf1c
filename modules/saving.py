"""Build a module from a checkpoint: its saved hyperparameters, then its weights.

Nothing in the file is executed. Keyword arguments win over the file. Hyperparameters that were saved from one
dictionary, namespace or dataclass come back as one `AttributeDict` under that argument's name. Fails with the
missing arguments' names when the checkpoint does not hold what the constructor needs.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from modules.checkpoint import format as checkpoint_format
from modules.hyperparameters import AttributeDict

T = TypeVar("T", bound=torch.nn.Module)


def load_from_checkpoint(
    cls: type[T],
    checkpoint_path: str | os.PathLike[str],
    map_location: Any = "cpu",
    hparams_file: str | os.PathLike[str] | None = None,
    strict: bool | None = None,
    **kwargs: Any,
) -> T:
    """Return an instance of `cls` with the checkpoint's hyperparameters and weights.

    Args:
        cls: The module's class.
        checkpoint_path: The file.
        map_location: Device of the weights, as in `torch.load`; the instance is moved there.
        hparams_file: A YAML file of hyperparameters that is used instead of the checkpoint's.
        strict: All names of weights must agree; None takes the module's ``strict_loading``.
        **kwargs: Arguments of the constructor, which win.

    Raises:
        CheckpointError: The file cannot be used.
        TypeError: The constructor needs arguments that neither the file nor `kwargs` has, or does not take
            some of `kwargs`.
        ValueError: The YAML file does not hold names and values.
    """
    content = checkpoint_format.read(checkpoint_path, map_location)
    saved = dict(content.get("hyper_parameters") or {})
    if hparams_file is not None:
        saved = _read_yaml(hparams_file)
    module = cls(**_arguments(cls, saved, content.get("hparams_name"), kwargs, checkpoint_path))
    hooks: Any = module
    hooks.configure_model()
    hooks.on_load_checkpoint(content)
    if strict is None:
        strict = bool(hooks.strict_loading)
    weights = content["state_dict"]
    module.load_state_dict(weights, strict=strict)
    device = next((item.device for item in weights.values() if isinstance(item, torch.Tensor)), None)
    return module if device is None else module.to(device)


def _arguments(
    cls: type[Any],
    saved: dict[str, Any],
    holder: str | None,
    kwargs: dict[str, Any],
    path: str | os.PathLike[str],
) -> dict[str, Any]:
    """Return what to call the constructor of `cls` with.

    Args:
        cls: The class.
        saved: The hyperparameters.
        holder: The one argument that takes all of them, if the class has such a one.
        kwargs: Arguments that win.
        path: The checkpoint, for the message.
    """
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    named = {
        name: item
        for name, item in parameters.items()
        if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
    }
    given = saved
    if holder in named and holder not in saved:
        given = {name: value for name, value in saved.items() if name in named}
        given[holder] = AttributeDict(saved)
    arguments = {**given, **kwargs}
    if not any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
        unknown = sorted(set(kwargs) - set(named))
        if unknown:
            raise TypeError(f"{cls.__qualname__} takes no argument {unknown}. It takes {sorted(named)}.")
        arguments = {name: value for name, value in arguments.items() if name in named}
    missing = [name for name, item in named.items() if item.default is item.empty and name not in arguments]
    if missing:
        raise TypeError(
            f"{cls.__qualname__} needs {missing}, and {os.fspath(path)} holds only {sorted(saved)}. "
            "Call save_hyperparameters() in __init__, or give them: load_from_checkpoint(path, "
            f"{missing[0]}=...)."
        )
    return arguments


def _read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    import yaml

    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    if content is not None and not isinstance(content, Mapping):
        raise ValueError(
            f"hparams_file {os.fspath(path)} holds a {type(content).__name__}. "
            "Write one `name: value` a line."
        )
    return dict(content or {})
