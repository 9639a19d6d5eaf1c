"""How ``fit`` is left when it was told to stop rather than failed.

All ranks leave it at the same step, behind the same checkpoint, so everything that failing gives up is still
there: weights, counters and callbacks are home in the driver, and ``fit(ckpt_path="last")`` goes on with
nothing lost. Neither is an `Exception`, so an ``except Exception`` around ``fit`` does not keep a program
going that was told to end.
"""

from __future__ import annotations

from cluster.preemption import EXIT_STATUS


class AgreedStop(BaseException):
    """All ranks stopped at the same step.

    Attributes:
        path: The checkpoint that was saved for going on, or None where there is none.
    """

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the path when it is pickled."""
        return type(self), (str(self), self.path)


class Interrupted(AgreedStop, KeyboardInterrupt):
    """Ctrl-C during ``fit``, as hooks see it.

    ``fit`` itself raises a plain KeyboardInterrupt with its words, so that a script which lets it pass ends
    with status 130, as Python does for that very class only.
    """


class Preempted(AgreedStop, SystemExit):
    """The run was told to go: SIGTERM, Ray's drain, or `Trainer(preemption_notice=...)`.

    Where nobody catches it, the script ends without a traceback with status 143, as by SIGTERM, so that
    whoever restarts what has failed starts it again.
    """

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message, path)
        self.code = EXIT_STATUS
