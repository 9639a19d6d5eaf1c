"""What ``self.log`` does under ``Trainer(barebones=True)``: nothing, and it says so once.

It costs one call. It keeps no value, so nothing can fail.
"""

from __future__ import annotations

import warnings
from typing import Any


class BareLog:
    """Takes whatever `log` takes."""

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, *arguments: Any) -> None:
        """Drop a value; the first time, warn."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"self.log({arguments[0]!r}, ...) does nothing under Trainer(barebones=True).", stacklevel=3
            )
