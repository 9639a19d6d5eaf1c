"""Whether the folders that a run writes to are the same on every node, found out before training.

Rank 0 writes checkpoints and logs, on the driver's node whenever a worker is there. Then other nodes need not
see the driver's disk. Where rank 0 is on a node that does not see it, or where a rank could not read the
checkpoint that the run starts from, the call is refused. Looking costs one small file per folder, once per
call, and nothing where all workers share the driver's node.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modules.checkpoint.remote import is_remote
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from cluster.context import WorkerContext
    from cluster.group import WorkerGroup
    from orchestrator.job import Job
    from orchestrator.trainer import Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one rank sees.

    Attributes:
        node: Its node's address.
        folders: For each folder None, or why the driver's is not there or cannot be written.
        reads: It can read the checkpoint to start from.
    """

    node: str
    folders: tuple[str | None, ...]
    reads: bool


def check(trainer: Trainer, job: Job, group: WorkerGroup) -> str | None:
    """Look from every rank, where some are on other nodes than the driver.

    Returns:
        What the user should know, or None.

    Raises:
        MisconfigurationError: Rank 0 would write where the user does not look, or a rank cannot read the
            checkpoint.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    if all(worker.node_id == here for worker in group.workers):
        return None
    folders = _folders(trainer) if job.fn == "fit" else []
    tokens = [_leave_token(folder) for folder in folders]
    try:
        sights = group.run(look, folders, tokens, job.ckpt_path)
    finally:
        for folder, token in zip(folders, tokens, strict=True):
            if token is not None:
                with contextlib.suppress(OSError):
                    os.remove(os.path.join(folder, token))
    return judge(folders, sights, job.fn, job.ckpt_path)


def look(
    context: WorkerContext, folders: Sequence[str], tokens: Sequence[str | None], path: str | None
) -> Sight:
    """Look at the driver's folders and checkpoint from a worker."""
    return Sight(
        node=context.node_ip,
        folders=tuple(map(_see, folders, tokens)),
        reads=path is None or is_remote(path) or os.access(path, os.R_OK),
    )


def judge(folders: Sequence[str], sights: Sequence[Sight], fn: str, path: str | None) -> str | None:
    """Decide from what the ranks see, in rank order; pure. As `check`."""
    blind = _unique(sight.node for sight in sights if not sight.reads)
    if blind:
        raise MisconfigurationError(
            f"{fn}(ckpt_path={path!r}): the file is not on {_say(blind)}, and every rank reads it. "
            "Put it on storage that all nodes share, at the same path."
        )
    first = sights[0]
    for folder, why in zip(folders, first.folders, strict=True):
        if why is not None:
            raise MisconfigurationError(
                f"Checkpoints and logs go to {folder}, and rank 0 on node {first.node} would write them: "
                f"there, {why}. Use a default_root_dir (and save_dir, dirpath) on storage that all nodes "
                "share, or let a worker run on this machine: it becomes rank 0."
            )
    apart = _unique(sight.node for sight in sights if any(sight.folders))
    if not apart:
        return None
    return (
        f"{', '.join(folders)}: not shared with {_say(apart)}. Rank 0 writes to this machine's disk; what "
        "other ranks write there themselves stays on their nodes."
    )


def _folders(trainer: Trainer) -> list[str]:
    """The folders that the trainer, its loggers and its savers of checkpoints write to."""
    settings = trainer.settings
    if settings.fast_dev_run or settings.barebones:
        return []
    found: list[Any] = [getattr(logger, "save_dir", None) for logger in trainer.loggers]
    savers = trainer.checkpoint_callbacks
    found += [getattr(saver, "dirpath", None) for saver in savers]
    if savers:
        found.insert(0, settings.default_root_dir)
    paths = [os.path.abspath(os.path.expanduser(item)) for item in found if isinstance(item, str) and item]
    return _unique(path for path in paths if "://" not in path)


def _leave_token(folder: str) -> str | None:
    """Make the folder, leave an empty file of a new name in it, and return the name."""
    name = f".seen-{uuid.uuid4().hex}"
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "wb"):
            return name
    except OSError:  # whoever writes there first says why
        return None


def _see(folder: str, token: str | None) -> str | None:
    """Return None if the driver's file is here and another can be written; else why not."""
    if token is None:
        return None
    if not os.path.exists(os.path.join(folder, token)):
        return "it is another disk" if os.path.isdir(folder) else "there is no such folder"
    own = os.path.join(folder, f"{token}-{uuid.uuid4().hex}")
    try:
        with open(own, "wb"):
            pass
        os.remove(own)
    except OSError as error:
        return f"it cannot be written ({error.strerror})"
    return None


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def _say(nodes: Sequence[str]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(nodes)}"
