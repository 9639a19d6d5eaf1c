"""The forms in which data is given: one loader, or several in a collection, and how those are read.

Pure decisions about objects that are not touched. A training step gets a batch of each loader at a time, the
shorter ones beginning again; evaluation runs one loader after the other; a `CombinedLoader` says otherwise.
A form that does not fit raises `MisconfigurationError` before anything starts, where the loaders were given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from modules.combined import CombinedLoader, flatten, holds_loaders, member_names
from modules.row_data import RowData
from orchestrator.errors import MisconfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How data is read.

    Attributes:
        mode: One of `modules.combined.MODES`.
        members: The loaders, each with its place in the collection; an empty one for a lone loader.
        combined: Several loaders; None for a lone one.
    """

    mode: str
    members: tuple[tuple[str, Any], ...]
    combined: CombinedLoader | None


def form_of(source: Any, kind: str) -> Form:
    """Return how `source` is read as data of `kind`: train, val, test or predict."""
    if not isinstance(source, CombinedLoader):
        is_empty = isinstance(source, (list, tuple)) and not source
        mode = "max_size_cycle" if kind == "train" else "sequential"
        if not is_empty and not holds_loaders(source):
            return Form(mode=mode, members=(("", source),), combined=None)
        source = CombinedLoader(source, mode)
    names = member_names(source.iterables)
    lone = names == [""]
    members = tuple(zip(names, source.flattened, strict=True))
    return Form(mode=source.mode, members=members, combined=None if lone else source)


def check_source(source: Any, kind: str, ranks: int, *, sent: bool) -> None:
    """Refuse what cannot be read as data.

    Args:
        source: What was given, or what a hook returned.
        kind: train, val, test or predict.
        ranks: Ranks that share it.
        sent: It is sent to the ranks, rather than made by each.

    Raises:
        MisconfigurationError: Something is no loader, or the mode is not for this kind of data.
    """
    combined = isinstance(source, CombinedLoader)
    mode = source.mode if combined else None
    if kind == "train" and mode == "sequential":
        raise MisconfigurationError(
            'The train data is a CombinedLoader(mode="sequential"), and a training step gets a batch of '
            "every loader at a time. Use min_size, max_size_cycle or max_size; to train on one data set "
            "after the other, join them with torch.utils.data.ConcatDataset."
        )
    if kind == "predict" and mode not in (None, "sequential"):
        raise MisconfigurationError(
            f"The predict data is a CombinedLoader(mode={mode!r}), and predictions belong to one loader "
            'each. Use mode="sequential", or a list of loaders.'
        )
    tree = source.iterables if combined else source
    if combined or holds_loaders(tree):
        leaves = list(zip(member_names(tree), flatten(tree), strict=True))
    else:
        leaves = [("", tree)]
    for name, leaf in leaves:
        _check_leaf(leaf, kind, f" at {name}" if name else "", ranks if sent else 1)


def _check_leaf(leaf: Any, kind: str, place: str, ranks: int) -> None:
    if isinstance(leaf, RowData):
        raise MisconfigurationError(
            f"The {kind} data{place} is a {type(leaf).__qualname__}, and how many rows a batch has is not "
            f"said. Use its loader: {type(leaf).__qualname__}(...).loader(batch_size=...)."
        )
    if isinstance(leaf, (Dataset, Tensor, str, bytes)) or not isinstance(leaf, Iterable):
        raise MisconfigurationError(
            f"The {kind} data{place} is a {type(leaf).__qualname__}, not an iterable of batches. "
            "Give a torch.utils.data.DataLoader."
        )
    if isinstance(leaf, CombinedLoader):
        raise MisconfigurationError(
            f"The {kind} data{place} is a CombinedLoader inside a collection, which would be read as batches "
            "of three. Put its loaders into the collection itself."
        )
    if ranks > 1 and isinstance(leaf, Iterator):
        raise MisconfigurationError(
            f"The {kind} data{place} is a {type(leaf).__qualname__}, which is read once and in one process, "
            f"and there are {ranks} ranks. Give a DataLoader over an IterableDataset, an object whose "
            f"__iter__ makes the iterator, or return it from {kind}_dataloader()."
        )


def may_be_empty(owner: Any) -> bool:
    """Whether a data module or module says that loaders may have no batches."""
    return bool(getattr(owner, "allow_zero_length_dataloader_with_multiple_devices", False))
