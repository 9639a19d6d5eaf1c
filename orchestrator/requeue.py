"""SLURM's way of going on: on its signal before the time is up, save, requeue the job, and end.

The signal's handler only notes it. At the next log point all ranks agree that one of them has seen it, write
a checkpoint together, and rank 0 calls ``scontrol requeue``. The restarted job finds the checkpoint by the
job's id and goes on from it. Where ``scontrol`` fails, training goes on with a warning, until SLURM ends it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.environments import Environment, SLURMEnvironment
from orchestrator.errors import MisconfigurationError, suggest

if TYPE_CHECKING:
    from orchestrator.engine import Engine

_INTERACTIVE = ("bash", "interactive")


class JobRequeued(SystemExit):
    """Raised on all ranks once the job is back in the queue; it ends the process with status 0."""

    def __init__(self, path: str) -> None:
        super().__init__(0)
        self.path = path


class Requeue:
    """The noted wish to be put back into the queue.

    Args:
        job_id: The job's id.
        path: Where its checkpoint goes.
    """

    def __init__(self, job_id: str, path: str) -> None:
        self.job_id = job_id
        self.path = path
        self.asked = False

    def note(self, *signal_and_frame: object) -> None:
        """Note that the signal has come: the handler."""
        self.asked = True

    def check(self, engine: Engine) -> None:
        """At a log point: if any rank was asked, save, requeue and end. Communicates.

        Raises:
            JobRequeued: It is done.
        """
        if not any(engine.strategy.gather(self.asked)):
            return
        engine.trainer.save_checkpoint(self.path)
        engine.say(f"Saved {self.path}; job {self.job_id} goes back into the queue.")
        done = self._call_scontrol() if engine.is_global_zero else None
        if engine.strategy.broadcast(done):
            raise JobRequeued(self.path)
        self.asked = False

    def _call_scontrol(self) -> bool:
        try:
            done = subprocess.run(
                ["scontrol", "requeue", self.job_id], capture_output=True, text=True, check=False, timeout=30
            )
            problem = "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        if problem:
            warnings.warn(
                f"scontrol requeue {self.job_id} failed: {problem}. Training goes on; the checkpoint is "
                f"{self.path}.",
                stacklevel=3,
            )
        return not problem


def find_requeue(
    environ: Mapping[str, str], environment: Environment | None, directory: str
) -> Requeue | None:
    """Return how this process asks SLURM for another turn; None outside of its batch jobs, or if not wanted.

    Args:
        environ: The environment variables.
        environment: What ``Trainer(plugins=...)`` has.
        directory: Where the checkpoint goes.
    """
    if isinstance(environment, SLURMEnvironment) and not environment.auto_requeue:
        return None
    job_id = environ.get("SLURM_JOB_ID", "")
    if not job_id or not SLURMEnvironment.detect(environ) or environ.get("SLURM_JOB_NAME") in _INTERACTIVE:
        return None
    return Requeue(job_id, os.path.join(directory, f"requeued-{job_id}.ckpt"))


def checkpoint_to_resume(environ: Mapping[str, str], requeue: Requeue | None) -> str | None:
    """Return the checkpoint that the job has left for itself in an earlier turn, or None."""
    again = environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    return requeue.path if requeue is not None and again and os.path.exists(requeue.path) else None


@contextmanager
def on_signal(requeue: Requeue | None, environment: Environment | None) -> Iterator[None]:
    """Let `requeue` note the signal, until the end; nothing without one, or outside of the main thread."""
    name = environment.requeue_signal if isinstance(environment, SLURMEnvironment) else "SIGUSR1"
    number = getattr(signal, name, None)
    if not isinstance(number, signal.Signals):
        known = [item.name for item in signal.Signals]
        raise MisconfigurationError(
            f"SLURMEnvironment(requeue_signal={name!r}): there is no such signal.{suggest(name, known)} "
            "Use 'SIGUSR1'."
        )
    if requeue is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, requeue.note)
    try:
        yield
    finally:
        signal.signal(number, before)
