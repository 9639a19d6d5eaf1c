"""The base class of every callback that writes checkpoints.

Such callbacks run after all others, at every hook, so that what the others did is in the file; and at the end
of a training epoch after the module, when the epoch's metrics are decided. A Trainer that has one adds no
`ModelCheckpoint` of its own. It has no behaviour, so it cannot fail.
"""

from __future__ import annotations

from orchestrator.callbacks.callback import Callback


class Checkpoint(Callback):
    """Subclass this to write checkpoints in a way of your own; the Trainer puts it behind other callbacks."""

    watches_metrics = True
