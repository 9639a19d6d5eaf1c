"""Build a module from a checkpoint: its saved hyperparameters, then its weights.

Nothing in the file is executed. Keyword arguments win over the file. Fails with the missing arguments' names
when the checkpoint does not hold what the constructor needs.
"""

from __future__ import annotations

import inspect
import os
from typing import Any, TypeVar

import torch

from modules.checkpoint import format as checkpoint_format

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
        map_location: Device of the weights, as in `torch.load`.
        hparams_file: A YAML file of hyperparameters that is used instead of the checkpoint's.
        strict: All names of weights must agree; None takes the module's ``strict_loading``.
        **kwargs: Arguments of the constructor, which win.

    Raises:
        CheckpointError: The file cannot be used.
        TypeError: The constructor needs arguments that neither the file nor `kwargs` has.
    """
    content = checkpoint_format.read(checkpoint_path, map_location)
    saved = dict(content.get("hyper_parameters") or {})
    if hparams_file is not None:
        import yaml

        with open(hparams_file, encoding="utf-8") as file:
            saved = dict(yaml.safe_load(file) or {})
    arguments = {**saved, **kwargs}
    signature = inspect.signature(cls.__init__)
    takes_any = any(item.kind is item.VAR_KEYWORD for item in signature.parameters.values())
    if not takes_any:
        known = set(list(signature.parameters)[1:])
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise TypeError(f"{cls.__qualname__} takes no argument {unknown}. It takes {sorted(known)}.")
        arguments = {name: value for name, value in arguments.items() if name in known}
    missing = [
        name
        for name, item in list(signature.parameters.items())[1:]
        if item.default is item.empty
        and item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
        and name not in arguments
    ]
    if missing:
        raise TypeError(
            f"{cls.__qualname__} needs {missing}, and {os.fspath(checkpoint_path)} holds only "
            f"{sorted(saved)}. "
            "Call save_hyperparameters() in __init__, or give them: load_from_checkpoint(path, "
            f"{missing[0]}=...)."
        )
    module = cls(**arguments)
    hooks: Any = module
    hooks.configure_model()
    hooks.on_load_checkpoint(content)
    if strict is None:
        strict = bool(hooks.strict_loading)
    module.load_state_dict(content["state_dict"], strict=strict)
    return module
