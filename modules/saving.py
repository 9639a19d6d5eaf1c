"""Build a module or a data module from a checkpoint: its saved hyperparameters, then what it had learnt.

Nothing in the file is executed. Keyword arguments win over a file of hyperparameters, and that over the
checkpoint's own. Hyperparameters that were saved from one dictionary, namespace or dataclass come back as one
object under that argument's name. Fails with the missing arguments' names when the checkpoint does not hold
what the constructor needs.
"""

from __future__ import annotations

import ast
import csv
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any, TypeVar

import torch

from modules.checkpoint import format as checkpoint_format
from modules.checkpoint import hyperparameters, remote

if TYPE_CHECKING:
    from modules.datamodule import LightningDataModule

    class_only_method = classmethod

M = TypeVar("M", bound=torch.nn.Module)
D = TypeVar("D", bound="LightningDataModule")
Source = str | os.PathLike[str] | IO[bytes]


if not TYPE_CHECKING:

    class class_only_method:
        """A class method that cannot be called on an instance, where its result would be lost unnoticed."""

        def __init__(self, method: Callable[..., Any]) -> None:
            self.method = method
            self.__doc__ = method.__doc__

        def __get__(self, instance: object | None, owner: type[Any]) -> Callable[..., Any]:
            """Return the method bound to the class, or, of an instance, what refuses to be called."""
            if instance is None:
                return functools.partial(self.method, owner)
            return functools.partial(_refuse_instance, owner.__qualname__, self.method.__name__)


def _refuse_instance(owner: str, name: str, *args: Any, **kwargs: Any) -> None:
    raise TypeError(
        f"{name} was called on an instance of {owner}, which it does not change: it returns a new one. Write "
        f"model = {owner}.{name}(...)."
    )


def load_from_checkpoint(
    cls: type[M],
    checkpoint_path: Source,
    map_location: Any = None,
    hparams_file: str | os.PathLike[str] | None = None,
    strict: bool | None = None,
    weights_only: bool | None = None,
    **kwargs: Any,
) -> M:
    """Return an instance of `cls` with the checkpoint's hyperparameters and weights.

    Args:
        cls: The module's class.
        checkpoint_path: The file, or an open binary file.
        map_location: Device of the weights, as in `torch.load`; the instance is moved there. None takes the
            devices that they were saved from, where this machine has them.
        hparams_file: A YAML or CSV file of hyperparameters that is used instead of the checkpoint's.
        strict: All names of weights must agree; None takes the module's ``strict_loading``.
        weights_only: None or True. Nothing but weights and plain values is ever loaded.
        **kwargs: Arguments of the constructor, which win.

    Raises:
        CheckpointError: The file cannot be used.
        TypeError: The constructor needs arguments that neither the file nor `kwargs` has, or does not take
            some of `kwargs`.
        ValueError: An argument cannot work, or the file of hyperparameters does not hold names and values.
    """
    content = _read(checkpoint_path, map_location, weights_only)
    module: M = _build(cls, content, "", hparams_file, kwargs, checkpoint_path)
    hooks: Any = module
    hooks.configure_model()
    hooks.on_load_checkpoint(content)
    if strict is None:
        strict = bool(hooks.strict_loading)
    weights = content["state_dict"]
    module.load_state_dict(weights, strict=strict)
    device = next((item.device for item in weights.values() if isinstance(item, torch.Tensor)), None)
    return module if device is None else module.to(device)


def load_data_from_checkpoint(
    cls: type[D],
    checkpoint_path: Source,
    map_location: Any = None,
    hparams_file: str | os.PathLike[str] | None = None,
    weights_only: bool | None = None,
    **kwargs: Any,
) -> D:
    """Return an instance of the data module `cls` with the checkpoint's hyperparameters and state of it.

    Arguments and errors are those of `load_from_checkpoint`.
    """
    content = _read(checkpoint_path, map_location, weights_only)
    datamodule: D = _build(cls, content, "datamodule_", hparams_file, kwargs, checkpoint_path)
    state = content.get(cls.__qualname__)
    if state:
        datamodule.load_state_dict(state)
    return datamodule


def _read(source: Source, map_location: Any, weights_only: bool | None) -> dict[str, Any]:
    is_remote = isinstance(source, (str, os.PathLike)) and remote.is_remote(source)
    problem = remote.problem_with(os.fspath(source)) if is_remote else None  # type: ignore[arg-type]
    if problem is not None:
        raise ValueError(
            f"load_from_checkpoint({source!r}) is a URL. Fetch the file first, and give its path or the open "
            f"file: {problem}."
        )
    if weights_only is False:
        raise ValueError(
            "load_from_checkpoint(weights_only=False) would run code from the file. Leave it out: objects "
            "that are not plain values are left out and named, and can be given as keyword arguments."
        )
    return checkpoint_format.read(source, _where_saved if map_location is None else map_location)


def _where_saved(storage: Any, location: str) -> Any:
    """Leave a weight where it was saved from, or on the CPU where this machine has no such device."""
    kind, _, index = location.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        return storage
    return torch.serialization.default_restore_location(storage, location) if kind == "cuda" else storage


def _build(
    cls: type[Any],
    content: Mapping[str, Any],
    prefix: str,
    hparams_file: str | os.PathLike[str] | None,
    kwargs: dict[str, Any],
    source: Source,
) -> Any:
    saved, holder = hyperparameters.saved_in(content, prefix)
    if hparams_file is not None:
        saved = _read_hyperparameters(hparams_file)
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the file"
    return cls(**_arguments(cls, saved, holder, kwargs, name))


def _arguments(
    cls: type[Any], saved: dict[str, Any], holder: str | None, kwargs: dict[str, Any], source: str
) -> dict[str, Any]:
    """Return what to call the constructor of `cls` with.

    Args:
        cls: The class.
        saved: The hyperparameters.
        holder: The one argument that takes all of them, if the class has such a one.
        kwargs: Arguments that win.
        source: What to call the checkpoint in the message.
    """
    parameters = dict(inspect.signature(cls).parameters)
    named = {
        name: item
        for name, item in parameters.items()
        if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
    }
    given = saved
    if holder in named and holder not in saved:
        given = {name: value for name, value in saved.items() if name in named}
        given[holder] = saved
    hints = hyperparameters.annotations_of(cls.__init__)
    given = {name: hyperparameters.as_annotated(value, hints.get(name)) for name, value in given.items()}
    arguments = {**given, **kwargs}
    if not any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
        unknown = sorted(set(kwargs) - set(named))
        if unknown:
            raise TypeError(f"{cls.__qualname__} takes no argument {unknown}. It takes {sorted(named)}.")
        arguments = {name: value for name, value in arguments.items() if name in named}
    missing = [name for name, item in named.items() if item.default is item.empty and name not in arguments]
    if missing:
        raise TypeError(
            f"{cls.__qualname__} needs {missing}, and {source} holds only {sorted(saved)}. "
            "Call save_hyperparameters() in __init__, or give them: load_from_checkpoint(path, "
            f"{missing[0]}=...)."
        )
    return arguments


def _read_hyperparameters(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the hyperparameters in a YAML file, or in a CSV file of the columns key and value."""
    extension = os.path.splitext(os.fspath(path))[1].lower()
    if extension == ".csv":
        return _read_csv(path)
    if extension in (".yaml", ".yml"):
        return _read_yaml(path)
    raise ValueError(
        f"hparams_file {os.fspath(path)!r} is neither YAML nor CSV. Name it .yaml, .yml or .csv."
    )


def _read_csv(path: str | os.PathLike[str]) -> dict[str, Any]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != ["key", "value"] or any(len(row) != 2 for row in rows):
        raise ValueError(
            f"hparams_file {os.fspath(path)} is not a table of hyperparameters. Write the line `key,value`, "
            "and one such line for each."
        )
    return {name: _literal(text) for name, text in rows[1:]}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    import yaml

    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(
                f"hparams_file {os.fspath(path)} cannot be read as plain YAML: {error}. "
                "Write one `name: value` a line, without tags of Python objects."
            ) from error
    if content is not None and not isinstance(content, Mapping):
        raise ValueError(
            f"hparams_file {os.fspath(path)} holds a {type(content).__name__}. "
            "Write one `name: value` a line."
        )
    return dict(content or {})
