"""Reads past objects of classes in a checkpoint: something inert stands in for each, and is then left out.

Lightning's files may hold whatever a user passed as a hyperparameter. torch's safe reader refuses the whole
file for one such object; here its class is replaced by an empty one, so the weights beside it can be had and
nothing from the file runs. A few classes that hold nothing but values (namespaces, paths, NumPy's numbers)
are made as they are. A class that is a dictionary or list of its own kind cannot be stood in for: torch's
reader then refuses the file.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterable
from typing import Any


class StandIn:
    """What an object of an unknown class becomes: it takes anything and does nothing."""

    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """Return an empty object, whatever its class would have been given."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_DICTIONARIES = frozenset(
    {
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    }
)
_VALUES: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "pathlib.PosixPath": pathlib.PurePosixPath,
    "pathlib.WindowsPath": pathlib.PureWindowsPath,
    "pathlib.PurePosixPath": pathlib.PurePosixPath,
    "pathlib.PureWindowsPath": pathlib.PureWindowsPath,
    **dict.fromkeys(_DICTIONARIES, dict),
}


def for_names(names: Iterable[str]) -> list[Any]:
    """Return what to let torch's safe reader put in place of the classes and functions called `names`.

    Args:
        names: With their modules, as the file has them.

    Returns:
        Pairs of a class and a name, as `torch.serialization.safe_globals` takes them.
    """
    found = [(_for_name(name), name) for name in names]
    return [*found, *_kinds_of_numbers()] if any(name == "numpy.dtype" for _, name in found) else found


def _for_name(name: str) -> Any:
    found = _VALUES.get(name) or _of_numpy(name)
    return type("StandIn", (StandIn,), {"origin": name}) if found is None else found


def _of_numpy(name: str) -> Any:
    """Return what makes NumPy's numbers, which hold nothing but their bytes; None for all else."""
    if not name.startswith("numpy."):
        return None
    import numpy

    if name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"):
        return numpy.float64(0).__reduce__()[0]  # the function, whatever NumPy calls it
    if name == "numpy.dtype":
        return numpy.dtype
    return None


def _kinds_of_numbers() -> list[Any]:
    """Return the classes that `numpy.dtype` makes instances of."""
    import numpy

    names = [name for name in numpy.dtypes.__all__ if name != "ObjectDType"]
    return [(getattr(numpy.dtypes, name), f"numpy.dtypes.{name}") for name in names]


def without(content: Any, left_out: list[str], path: str = "") -> Any:
    """Return `content` without stand-ins: dictionaries lose the entry, sequences get None in its place.

    Args:
        content: What was read.
        left_out: Collects the path and class of each.
        path: Where `content` stands in the whole.
    """
    if isinstance(content, StandIn):
        left_out.append(f"{path} ({content.origin})")
        return None
    if isinstance(content, type) and issubclass(content, StandIn):
        left_out.append(f"{path} ({content.origin} itself)")
        return None
    if isinstance(content, argparse.Namespace):
        return argparse.Namespace(**without(vars(content), left_out, path))
    if isinstance(content, dict):
        for key in list(content):
            where = f"{path}.{key}" if path else str(key)
            if _stands_in(key):
                without(key, left_out, f"{path} key" if path else "key")
                del content[key]
            elif _stands_in(content[key]):
                without(content[key], left_out, where)
                del content[key]
            else:
                content[key] = without(content[key], left_out, where)
        return content
    if type(content) in (list, tuple, set):
        return type(content)(without(item, left_out, f"{path}[{i}]") for i, item in enumerate(content))
    return content


def _stands_in(item: Any) -> bool:
    return isinstance(item, StandIn) or (isinstance(item, type) and issubclass(item, StandIn))
