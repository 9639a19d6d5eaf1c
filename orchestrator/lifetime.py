"""The end of what is kept warm between calls."""

from __future__ import annotations

import sys


def shutdown() -> None:
    """End the warm workers of this process, and the Ray that was started for them. Called by itself at exit.

    A later `fit` on a group starts anew. Does nothing when no group was ever used.
    """
    if "cluster.pool" in sys.modules:
        from cluster import pool, session

        pool.end()
        session.shutdown()
