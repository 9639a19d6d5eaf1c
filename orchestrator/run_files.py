"""The two files that tell a run: where they lie, what they hold, and how they are read.

```
lightning_logs/version_0/
    run.json        what the run was made of, and its calls: format, name, hyperparameters, arguments (of the
                    Trainer, where they are not the defaults), environment, code, calls
    events.jsonl    one event a line: start, train, epoch, validation, checkpoint, recovery, again,
                    differences, end
    report.html     what `orchestrator report` has made of it
    checkpoints/, config.yaml, hparams.yaml, metrics.csv, events.out.tfevents.*    of others, as always
```

Neither torch nor Ray is loaded to read them. A record of a later version, and a file that is none, is a
`MisconfigurationError`; what a crash has cut short is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from orchestrator.errors import MisconfigurationError

FORMAT = 1
RUN_FILE, EVENTS_FILE = "run.json", "events.jsonl"


def origin_of(ckpt_path: str) -> Path | None:
    """Return the folder of the run that a checkpoint belongs to; None where none was recorded."""
    above = Path(ckpt_path).absolute().parents[:3]
    return next((folder for folder in above if (folder / RUN_FILE).is_file()), None)


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``run.json`` in `folder` says.

    Raises:
        MisconfigurationError: There is none, it is damaged, or a later version of this project wrote it.
    """
    path = Path(folder) / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = (
            f"has no {RUN_FILE}, so it is not the folder of a run" if path.parent.is_dir() else "is not there"
        )
        raise MisconfigurationError(
            f"{os.fspath(folder)} {why}. Name a version "
            "directory, like lightning_logs/version_0; `orchestrator runs` lists them."
        ) from None
    except (OSError, ValueError) as error:
        raise MisconfigurationError(f"{path} cannot be read: {error}. Is it a run's?") from None
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int) or found > FORMAT or not isinstance(content.get("calls"), list):
        raise MisconfigurationError(
            f"{path} has format {found!r}, and this version reads up to {FORMAT}. Install the version that "
            "wrote it, or a later one."
        )
    return dict(content)


def read_events(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the events of a run, in order. A last line that a crash has cut short is left out."""
    path = Path(folder) / EVENTS_FILE
    events = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    events.append(event)
    return events
