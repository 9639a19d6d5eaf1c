"""Where the data is: all the state that reading has, small enough to be JSON.

A cursor says which samples of which epoch have been used up, over all ranks, so it means the same at any
number of ranks. It never holds samples or file handles.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in the stream of samples.

    Attributes:
        epoch: The epoch being read, from 0.
        position: Samples of this epoch that have been used, over all ranks.
        batches: Batches of this epoch that each rank has used.
        seed: The seed of the order of samples.
        fingerprint: What identifies the data; empty when unknown. Resuming on other data is refused.
    """

    epoch: int = 0
    position: int = 0
    batches: int = 0
    seed: int = 0
    fingerprint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the cursor as a dictionary of numbers and strings."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Cursor:
        """Return the cursor that `to_dict` described; keys of later versions are ignored."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})
