"""What a checkpoint is called and which ones are kept: decisions only, no files.

Every function here is pure, so all ranks that know the same numbers decide the same. A score that is NaN is
worse than any other. A score equal to the worst that is kept does not displace it, and of several equally
bad ones the oldest leaves first. Templates that cannot be filled raise `MisconfigurationError`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.errors import MisconfigurationError

Mode = Literal["min", "max"]


# ---------------------------------------------------------------- names


def format_name(
    template: str, metrics: Mapping[str, float], *, auto_insert_metric_name: bool = True, equals: str = "="
) -> str:
    """Return `template` with ``{name}`` and ``{name:spec}`` replaced by values of `metrics`; an absent one
    is 0.

    With `auto_insert_metric_name` the name and `equals` come before the value.

    >>> format_name("{epoch}-{val/loss:.2f}", {"epoch": 3, "val/loss": 0.1234}, auto_insert_metric_name=False)
    '3-0.12'
    >>> format_name("{epoch:02d}-{acc:.1f}", {"epoch": 3, "acc": 0.95})
    'epoch=03-acc=0.9'

    Raises:
        MisconfigurationError: when the template is malformed, or a value does not take its spec.
    """
    parts = []
    for text, name, spec in _parse(template):
        parts.append(text)
        if name is None:
            continue
        try:
            value = format(metrics.get(name, 0), spec)
        except ValueError as error:
            raise MisconfigurationError(
                f"ModelCheckpoint(filename={template!r}) cannot write {name!r}: {metrics.get(name, 0)!r} "
                f"as {spec!r} ({error}). Use a format for numbers, such as '.2f'."
            ) from error
        parts.append(f"{name}{equals}{value}" if auto_insert_metric_name else value)
    return "".join(parts)


def names_in(template: str) -> list[str]:
    """Return the names of metrics that `template` asks for.

    Raises:
        MisconfigurationError: when the template is malformed.
    """
    return [name for _, name, _ in _parse(template) if name is not None]


def _parse(template: str) -> list[tuple[str, str | None, str]]:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise MisconfigurationError(
            f"ModelCheckpoint(filename={template!r}) is not a template: {error}. "
            "Write each metric in braces, as in '{epoch}-{val_loss:.2f}'."
        ) from error
    if any(name == "" or conversion for _, name, _, conversion in pieces):
        raise MisconfigurationError(
            f"ModelCheckpoint(filename={template!r}) has braces without a metric's name alone. "
            "Write each metric in braces, as in '{epoch}-{val_loss:.2f}'."
        )
    return [(text, name, spec or "") for text, name, spec, _ in pieces]


def free_name(
    make: Callable[[int | None], str], is_taken: Callable[[str], bool], first_version: int = 1
) -> str:
    """Return ``make(None)``, or the first of ``make(1)``, ``make(2)``, ... that is not taken."""
    name = make(None)
    version = first_version
    while is_taken(name):
        name = make(version)
        version += 1
    return name


# ---------------------------------------------------------------- retention


def is_better(score: float, than: float, mode: Mode) -> bool:
    """Whether `score` is strictly better. NaN never is, and any number is better than NaN."""
    return _rank(score, mode) < _rank(than, mode)


def _rank(score: float, mode: Mode) -> float:
    if math.isnan(score):
        return math.inf
    return score if mode == "min" else -score


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The checkpoints that are kept, with their scores, in the order in which they were saved.

    Attributes:
        k: How many to keep; -1 for all.
        mode: Whether a lower or a higher score is better.
        scores: Score by path. NaN is stored as the worst infinity.
    """

    k: int
    mode: Mode
    scores: Mapping[str, float] = field(default_factory=dict)

    def admits(self, score: float) -> bool:
        """Whether a checkpoint of this score is kept."""
        if self.k == 0:
            return False
        return not self.is_full or is_better(score, self.scores[self.worst], self.mode)

    @property
    def is_full(self) -> bool:
        """Whether another checkpoint can only come in place of one that is there."""
        return self.k != -1 and len(self.scores) >= self.k

    @property
    def best(self) -> str:
        """The path of the best score, or an empty string."""
        return min(self.scores, key=lambda path: _rank(self.scores[path], self.mode), default="")

    @property
    def worst(self) -> str:
        """The path of the worst score, or an empty string."""
        return max(self.scores, key=lambda path: _rank(self.scores[path], self.mode), default="")

    @property
    def leaving(self) -> str:
        """The path that would have to make room for another checkpoint, or an empty string."""
        return self.worst if self.is_full else ""

    def with_saved(self, path: str, score: float) -> TopK:
        """Return the checkpoints after `path` was saved in place of `leaving`."""
        worst_possible = math.inf if self.mode == "min" else -math.inf
        leaving = self.leaving
        scores = {kept: value for kept, value in self.scores.items() if kept not in (leaving, path)}
        scores[path] = worst_possible if math.isnan(score) else score
        return TopK(k=self.k, mode=self.mode, scores=scores)
