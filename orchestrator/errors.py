"""The errors that training raises on its own account; a user's exceptions pass through unchanged.

```
Exception
├── MisconfigurationError (ValueError)   arguments that cannot work; found before anything starts
└── SweepError (RuntimeError)            all trials of a sweep failed
BaseException
├── TrialStopped                         a sweep ended this trial early (orchestrator.sweep.stopped)
├── Interrupted (KeyboardInterrupt)      Ctrl-C; all ranks stopped at the same step (orchestrator.stops)
└── Preempted (SystemExit)               told to go; all ranks stopped at the same step (orchestrator.stops)
```

Failures of processes and of the cluster are in `cluster.errors`. Lightning raises
`MisconfigurationException` where this project raises `MisconfigurationError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MisconfigurationError(ValueError):
    """An argument, or several together, cannot work. The message names them as the user wrote them."""


class SweepError(RuntimeError):
    """All trials of a sweep failed. The message quotes the first error and says where the others are."""


def suggest(word: object, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of `known`, or an empty string when none is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
