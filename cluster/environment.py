"""Environment variables: which of the driver's the workers get, and those that are changed for a while.

The workers get what loggers, model hubs and storage need to know who the user is, and what the user has named
in ORCHESTRATOR_ENVIRONMENT. What belongs to one machine (paths of its libraries, its interfaces, its GPUs) is
not sent. Putting back leaves alone what someone else has set in the meantime.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

Changes = dict[str, tuple[str | None, str | None]]
"""For each variable its value before and after; None: not set."""

ASKED = "ORCHESTRATOR_ENVIRONMENT"
"""Further variables to send, with commas between them; `NAME_*` means all that begin so."""
SENT = (
    "WANDB_*",
    "MLFLOW_*",
    "COMET_*",
    "NEPTUNE_*",
    "HF_*",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_*",
    "TRANSFORMERS_*",
    "TOKENIZERS_PARALLELISM",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL*",
    "GOOGLE_CLOUD_PROJECT",
    "AZURE_*",
    "DATABRICKS_*",
    "KAGGLE_*",
)
"""The variables that workers get from the driver; `NAME_*` means all that begin so."""


def chosen(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that the workers get, sorted by name.

    >>> chosen({"WANDB_MODE": "offline", "HOME": "/root", "ORCHESTRATOR_ENVIRONMENT": "MY_*", "MY_KEY": "1"})
    {'MY_KEY': '1', 'WANDB_MODE': 'offline'}
    """
    patterns = [*SENT, *(item.strip() for item in environ.get(ASKED, "").split(",") if item.strip())]
    names = {item for item in patterns if not item.endswith("*")}
    prefixes = tuple(item[:-1] for item in patterns if item.endswith("*"))
    return {
        name: value
        for name, value in sorted(environ.items())
        if name in names or (prefixes and name.startswith(prefixes))
    }


def changes_since(before: Mapping[str, str]) -> Changes:
    """The variables of this process that differ from those of `before`, a copy of `os.environ`."""
    return {
        name: (before.get(name), os.environ.get(name))
        for name in before.keys() | os.environ.keys()
        if before.get(name) != os.environ.get(name)
    }


def undo(changes: Changes) -> None:
    """Put variables back, but for those that no longer have the value they were changed to."""
    for name, (before, after) in changes.items():
        if os.environ.get(name) != after:
            continue
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextmanager
def defaulted(**values: str) -> Iterator[None]:
    """Set variables that are not set, for the duration of the block."""
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.setdefault(name, value)
    changes = changes_since(before)
    try:
        yield
    finally:
        undo(changes)
