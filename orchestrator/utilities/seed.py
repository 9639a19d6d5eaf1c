"""Random state: seed it, or leave it as it was."""

from __future__ import annotations

from contextlib import AbstractContextManager

from modules import rng
from modules.rng import seed_everything as seed_everything

__all__ = ["isolate_rng", "seed_everything"]


def isolate_rng(include_cuda: bool = True) -> AbstractContextManager[None]:
    """Return a context after which torch's, Python's and NumPy's generators are as they were before it.

    Args:
        include_cuda: Accepted; the generators of GPUs that are in use are always put back.

    >>> import torch
    >>> before = torch.get_rng_state()
    >>> with isolate_rng():
    ...     _ = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    return rng.isolated()
