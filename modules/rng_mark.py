"""Random states taken at every step: what has not changed since is not copied again.

`modules.rng.capture` is for checkpoints; a mark is for keeping the last few states at hand. Marks are plain
tuples that pickle. Python's and NumPy's states are large and rarely move in a training step, so whether they
did is looked up in a few of their words before they are compared or copied.
"""

from __future__ import annotations

import ctypes
import random
import sys
from typing import Any, NamedTuple

import torch

_NUMPY_BYTES = 625 * 4  # MT19937: 624 words of key, and the position


class RngMark(NamedTuple):
    """The states of all global generators.

    Attributes:
        torch: Of the CPU, as bytes.
        python: As ``random.getstate`` returns it; None where it is known from another mark.
        numpy: As ``numpy.random.get_state`` returns it; None where NumPy is not loaded.
        cuda: Of each GPU, as tensors; None without.
    """

    torch: bytes
    python: tuple[Any, ...] | None
    numpy: tuple[Any, ...] | None
    cuda: tuple[torch.Tensor, ...] | None


class RngMarker:
    """Takes marks. Parts that have not changed from one mark to the next are the same objects."""

    def __init__(self) -> None:
        self._python: tuple[Any, ...] = random.getstate()
        self._numpy: tuple[Any, ...] | None = None
        self._numpy_raw = b""
        self._address = 0

    def take(self) -> RngMark:
        """Return the states as they are now."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else None
        return RngMark(torch.get_rng_state().numpy().tobytes(), self._take_python(), self._take_numpy(), cuda)

    def _take_python(self) -> tuple[Any, ...]:
        now, before = random.getstate(), self._python
        words, old = now[1], before[1]
        # A draw moves the position, the last word; every 624th makes all words anew, as seeding does.
        if words[-1] != old[-1] or words[0] != old[0] or words[300] != old[300] or now[2] != before[2]:
            self._python = now
        return self._python

    def _take_numpy(self) -> tuple[Any, ...] | None:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return None
        if not self._address:
            generator = numpy.random.get_bit_generator()
            self._address = generator.ctypes.state_address if type(generator).__name__ == "MT19937" else -1
        raw = ctypes.string_at(self._address, _NUMPY_BYTES) if self._address > 0 else b""
        held_back = self._numpy is not None and self._numpy[3]  # a normal number that was drawn but not given
        if not raw or raw != self._numpy_raw or held_back or self._numpy is None:
            self._numpy, self._numpy_raw = numpy.random.get_state(), raw
        return self._numpy


def put(mark: RngMark) -> None:
    """Set all global generators to the states of a mark."""
    if mark.python is not None:
        random.setstate(mark.python)
    torch.set_rng_state(torch.frombuffer(bytearray(mark.torch), dtype=torch.uint8))
    if mark.numpy is not None:
        import numpy

        numpy.random.set_state(mark.numpy)
    if mark.cuda is not None and len(mark.cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(list(mark.cuda))
