"""Several loaders read as one: a batch of each at a time, or one loader after the other.

The loaders may stand in any nesting of dictionaries, lists and tuples; a batch has the same nesting. How long
an epoch is when they differ in length is the mode's business. Lengths are answered before the first
iteration too; a loader without one makes that a `TypeError`. An unknown mode, or a member that cannot be
iterated, is refused at once; a member that has to be read again and cannot be, when that happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

MODES = ("min_size", "max_size_cycle", "max_size", "sequential")
NOTHING: Any = object()
"""What `Strand.take` returns at the end of a pass."""


class CombinedLoader:
    """Several iterables of batches as one.

    Iterating yields ``(batch, batch_idx, dataloader_idx)``. In all modes but ``"sequential"`` a batch is the
    collection with a batch of each member in its place, and `dataloader_idx` is 0.

    - ``"min_size"``: as many as the shortest has.
    - ``"max_size_cycle"``: as many as the longest has; shorter ones begin again.
    - ``"max_size"``: as many as the longest has; None stands for members that have ended.
    - ``"sequential"``: one member after the other; `batch_idx` begins at 0 with each.

    >>> [batch for batch, _, _ in CombinedLoader({"a": range(2), "b": range(3)}, "max_size_cycle")]
    [{'a': 0, 'b': 0}, {'a': 1, 'b': 1}, {'a': 0, 'b': 2}]

    Args:
        iterables: One iterable, or any nesting of dictionaries, lists and tuples of them.
        mode: One of `MODES`.

    Attributes:
        iterables: As given.
        mode: As given.

    Raises:
        ValueError: There is no such mode.
        TypeError: A member cannot be iterated.
    """

    def __init__(self, iterables: Any, mode: str = "min_size") -> None:
        if mode not in MODES:
            raise ValueError(f"CombinedLoader(mode={mode!r}) is unknown. Use one of {', '.join(MODES)}.")
        self.iterables = iterables
        self.mode = mode
        for name, member in zip(member_names(iterables), self.flattened, strict=True):
            if not isinstance(member, Iterable):
                raise TypeError(
                    f"CombinedLoader(iterables=...) has a {type(member).__qualname__} at "
                    f"{name or 'the top'}, which cannot be iterated. Give loaders."
                )

    @property
    def flattened(self) -> list[Any]:
        """The members, in the order of the collection."""
        return flatten(self.iterables)

    def __len__(self) -> int:
        lengths = [len(member) for member in self.flattened]
        length = combined_length(lengths, self.mode)
        assert length is not None
        return length

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        if self.mode == "sequential":
            for place, member in enumerate(self.flattened):
                for index, batch in enumerate(member):
                    yield batch, index, place
            return
        names = member_names(self.iterables)
        strands = [Strand(member.__iter__, name) for name, member in zip(names, self.flattened, strict=True)]
        for strand in strands:
            strand.begin()
        for index, row in enumerate(read_together(strands, self.mode)):
            yield unflatten(self.iterables, row), index, 0


class Strand:
    """One of several iterables that are read together.

    Args:
        make: Returns a new iterator over all of its batches.
        name: Where it stands in the collection.

    Attributes:
        batches: Batches of the present pass that were taken.
        passes: Passes that have ended.
    """

    def __init__(self, make: Callable[[], Iterator[Any]], name: str) -> None:
        self.make = make
        self.name = name
        self.batches = 0
        self.passes = 0
        self.iterator: Iterator[Any] | None = None

    def begin(self) -> None:
        """Begin a pass."""
        self.iterator = self.make()
        self.batches = 0

    def take(self) -> Any:
        """Return the next batch of the pass, or `NOTHING`."""
        if self.iterator is None:
            return NOTHING
        item = next(self.iterator, NOTHING)
        if item is NOTHING:
            self.iterator = None
            self.passes += 1
        else:
            self.batches += 1
        return item


def read_together(strands: Sequence[Strand], mode: str) -> Iterator[list[Any]]:
    """Yield a batch of each strand at a time, until the mode says that it is over.

    Args:
        strands: They have begun.
        mode: One of `MODES` but sequential.

    Raises:
        ValueError: A strand should begin again and has nothing any more.
    """
    while strands:
        row = []
        for strand in strands:
            item = strand.take()
            if item is NOTHING:
                if mode == "min_size" or all(other.passes for other in strands):
                    return
                item = None if mode == "max_size" else _again(strand)
            row.append(item)
        yield row


def _again(strand: Strand) -> Any:
    """Begin another pass and return its first batch."""
    strand.begin()
    item = strand.take()
    if item is NOTHING:
        raise ValueError(
            f"The loader at {strand.name or 'the top'} ended before the longest and has nothing when it is "
            "read again: it is empty, or an iterator, which can be read once. Give a loader that can be "
            'iterated again, or use CombinedLoader(..., "min_size").'
        )
    return item


def combined_length(lengths: Sequence[int | None], mode: str) -> int | None:
    """Return how many batches `lengths` make under `mode`; None where an unknown length, None, matters.

    >>> [combined_length([2, 3], mode) for mode in MODES]
    [2, 3, 3, 5]
    """
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return None
    if mode == "sequential":
        return sum(known)
    return (min if mode == "min_size" else max)(known, default=0)


def holds_loaders(source: Any) -> bool:
    """Whether `source` is a collection of loaders, rather than one loader or a list of batches.

    A list or tuple of tensors, arrays, numbers and strings, however nested, is taken for batches. A
    dictionary is always a collection.
    """
    if isinstance(source, dict):
        return True
    return isinstance(source, (list, tuple)) and any(_is_loader(leaf) for leaf in flatten(source))


def _is_loader(leaf: Any) -> bool:
    if isinstance(leaf, (Tensor, str, bytes)) or hasattr(leaf, "__array__"):
        return False
    return isinstance(leaf, Iterable)


def flatten(tree: Any) -> list[Any]:
    """Return the leaves of nested dictionaries, lists and tuples, in order."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [leaf for branch in tree for leaf in flatten(branch)]
    return [tree]


def unflatten(tree: Any, leaves: Sequence[Any]) -> Any:
    """Return a collection nested as `tree` is, with other leaves."""
    if type(tree) is dict and not any(isinstance(item, (dict, list, tuple)) for item in tree.values()):
        return dict(zip(tree, leaves, strict=True))
    return _grow(tree, iter(leaves))


def _grow(tree: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(tree, dict):
        grown = [(key, _grow(branch, leaves)) for key, branch in tree.items()]
        return dict(grown) if type(tree) is dict else type(tree)(grown)
    if isinstance(tree, (list, tuple)):
        branches = [_grow(branch, leaves) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    return next(leaves)


def member_names(tree: Any, start: str = "") -> list[str]:
    """Return where each leaf stands, like ``['a']`` or ``['b'][0]``; an empty string for a lone one.

    >>> member_names({"a": 1, "b": [2, 3]})
    ["['a']", "['b'][0]", "['b'][1]"]
    """
    if isinstance(tree, dict):
        branches = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        branches = list(enumerate(tree))
    else:
        return [start]
    return [name for key, branch in branches for name in member_names(branch, f"{start}[{key!r}]")]
