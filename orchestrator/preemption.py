"""What the driver does when it is told to stop: by Ctrl-C, SIGTERM, Ray's drain, or the user's own notice.

The first word makes a running ``fit`` save and stop at the next place that all ranks come by, and be left by
`Interrupted` or `Preempted`. A second one of the same signal, or any while there is nothing to save, ends
the call at once: Ctrl-C by KeyboardInterrupt, SIGTERM by SystemExit. A run that does not come to such a place
within its grace is ended without saving. Signals are taken in the main thread
only, and only where the program has not set handlers of its own; they are as before after the call.

Where the ranks that must go are replaced while the others go on, `hand_over` is asked first.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cluster.preemption import EXIT_STATUS, GRACE_S, Notice
from orchestrator.errors import MisconfigurationError
from orchestrator.stop_agreement import SIGNAL, GatheredStop, StopOrder, agree
from orchestrator.stops import AgreedStop, Interrupted, Preempted

if TYPE_CHECKING:
    from cluster.group import WorkerGroup
    from orchestrator.engine import Engine

_log = logging.getLogger("orchestrator")

PreemptionNotice = Callable[[], float | bool | None]
HandOver = Callable[[Notice], bool]
"""Called with the ranks that must go and their deadline; True: they will be replaced in time, so the run
goes on."""
Carry = Callable[[StopOrder], None]

_POLL_S = 1.0
_RESERVE = 0.1  # of the grace: for ending the group


def check_notice(value: Any) -> PreemptionNotice | None:
    """Return ``Trainer(preemption_notice=value)``.

    Raises:
        MisconfigurationError: It cannot be called.
    """
    if value is None or callable(value):
        return value  # type: ignore[no-any-return]
    raise MisconfigurationError(
        f"Trainer(preemption_notice={value!r}). Use a function without arguments that returns None while all "
        "is well, and the seconds that are left once the run must go."
    )


def read_notice(value: float | bool | None) -> float | None:
    """Return the seconds that an answer of the user's function leaves, or None while all is well.

    >>> read_notice(None), read_notice(False), read_notice(True), read_notice(120)
    (None, None, 30.0, 120.0)
    """
    if value is None or value is False:
        return None
    return GRACE_S if value is True else float(value)


class StopDesk:
    """Takes the words to stop of one ``fit``, and carries them to where it runs.

    Args:
        carry: Sees that the run stops; called in a thread of the desk's, once.
        is_ready: Whether the run would come to a place to stop at; else signals act as without us.
        notice: The user's function, called once a second in a thread, or None.
        hand_over: Asked, before the run is stopped, about notices that name ranks.

    Attributes:
        order: What the run was told; None while it was told nothing.
        leaves: The processes that it runs in are to go, or will not serve again.
        gave_up: The run did not stop in its grace and was ended.
    """

    def __init__(
        self,
        carry: Carry,
        is_ready: Callable[[], bool],
        notice: PreemptionNotice | None,
        hand_over: HandOver | None = None,
    ) -> None:
        self.order: StopOrder | None = None
        self.leaves = False
        self.gave_up = False
        self._carry = carry
        self._is_ready = is_ready
        self._takes_signals = False
        self._notice = notice
        self._hand_over = hand_over
        self._words: queue.SimpleQueue[tuple[StopOrder, Notice] | None] = queue.SimpleQueue()
        self._seen: set[int] = set()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, name="orchestrator-stop", daemon=True)]
        if notice is not None:
            asks = threading.Thread(target=self._ask, name="orchestrator-notice", daemon=True)
            self._threads.append(asks)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, or its time is up."""
        return self._over.is_set() or self.gave_up

    def take(self, notice: Notice) -> None:
        """Take a notice. From any thread."""
        order = StopOrder(reason=notice.reason, interrupt=False)
        self._words.put((order, notice))

    @contextmanager
    def open(self) -> Iterator[None]:
        """Take words until the end of the block."""
        for thread in self._threads:
            thread.start()
        try:
            with _signals(self._on_signal) as self._takes_signals:
                yield
        finally:
            self._over.set()
            self._words.put(None)
            for thread in self._threads:
                thread.join()

    def end(self) -> None:
        """End the run at once, where signals are taken: the next thing that its main thread does is to
        raise."""
        self._is_ready = lambda: False
        if self._takes_signals:
            signal.raise_signal(signal.SIGINT)

    def outcome(self, step: int) -> AgreedStop | None:
        """Return what a call is left by that was told to stop but did not do so by itself; else None.

        Args:
            step: Optimizer steps so far.
        """
        if self.order is None:
            return None
        if self.gave_up:
            kind = Interrupted if self.order.interrupt else Preempted
            return kind(
                f"{self.order.reason}: training did not come to the end of a step in the time that was left, "
                "and was ended without saving. Go on from the newest checkpoint."
            )
        return self.order.error(None, step, ended=True)

    def _on_signal(self, number: int) -> bool:
        """Take a signal, in its handler; return False to let it act as without us."""
        if number in self._seen or not self._is_ready():
            return False
        self._seen.add(number)
        interrupt = number == signal.SIGINT
        reason = "Ctrl-C" if interrupt else "SIGTERM to this process"
        notice = Notice(reason=reason, ranks=(), deadline=time.monotonic() + GRACE_S)
        self._words.put((StopOrder(reason=reason, interrupt=interrupt), notice))
        return True

    def _work(self) -> None:
        """Body of a thread: the first word that nobody else deals with stops the run."""
        while (word := self._words.get()) is not None:
            order, notice = word
            if notice.ranks and self._hand_over is not None and self._hand_over(notice):
                continue
            self._stop(order, notice)
            return

    def _stop(self, order: StopOrder, notice: Notice) -> None:
        self.order, self.leaves = order, not order.interrupt
        again = " Press it again to end at once." if order.interrupt else ""
        _log.info("%s: saving and stopping after this step.%s", order.reason, again)
        left_s = max(0.0, notice.deadline - time.monotonic()) * (1 - _RESERVE)
        watch = threading.Timer(left_s, self._give_up)
        watch.daemon = True
        watch.start()
        try:
            self._carry(order)
            self._over.wait()
        finally:
            watch.cancel()
            watch.join()

    def _give_up(self) -> None:
        if not self._over.is_set():
            self.gave_up = self.leaves = True
            self.end()

    def _ask(self) -> None:
        """Body of a thread: ask the user's function until it says that the run must go."""
        assert self._notice is not None
        left_s, warned = None, False
        while left_s is None:
            try:
                left_s = read_notice(self._notice())
            except Exception as error:
                if not warned:
                    warned = True
                    _log.warning("preemption_notice failed and is asked again: %r", error)
            if left_s is not None:
                reason = f"preemption_notice said that {left_s:g} s are left"
                self.take(Notice(reason=reason, ranks=(), deadline=time.monotonic() + left_s))
            elif self._over.wait(_POLL_S):
                return


class GroupDesk(StopDesk):
    """The desk of a fit on a worker group.

    Args:
        group: Where it runs.
        notice: As for `StopDesk`.
        hand_over: As for `StopDesk`.
    """

    def __init__(
        self, group: WorkerGroup, notice: PreemptionNotice | None, hand_over: HandOver | None = None
    ) -> None:
        super().__init__(self._order_all, lambda: True, notice, hand_over)
        self._group = group

    def end(self) -> None:
        """End the group: whoever waits for it is told."""
        self._group.shutdown()

    def _order_all(self, order: StopOrder) -> None:
        agree(lambda word: self._group.announce(SIGNAL, word), order, lambda: self.is_over)


def desk_in_process(engine: Engine, notice: PreemptionNotice | None) -> StopDesk:
    """Return the desk of a fit whose one rank is this process."""

    def carry(order: StopOrder) -> None:
        engine.stopping.told[SIGNAL] = order

    return StopDesk(carry, lambda: engine.stoppable, notice)


def desk_of_rank(engine: Engine, notice: PreemptionNotice | None) -> StopDesk:
    """Return the desk of a fit that has this process among ranks without a driver."""
    gathered = engine.gathered_stop = GatheredStop()

    def carry(order: StopOrder) -> None:
        gathered.order = order

    return StopDesk(carry, lambda: engine.stoppable, notice)


def run_heeding(engine: Engine, make_desk: Callable[[Engine, PreemptionNotice | None], StopDesk]) -> Any:
    """Run the engine here, a fit with a desk that takes words to stop, and return what it returns.

    Raises:
        AgreedStop: It was told to stop, and did, or had just come to its end.
    """
    if engine.job.fn != "fit":
        return engine.run()
    desk = make_desk(engine, engine.trainer.preemption_notice)
    try:
        with desk.open():
            result = engine.run()
    except KeyboardInterrupt as error:
        if desk.gave_up and not isinstance(error, AgreedStop):
            raise desk.outcome(engine.state.global_step) from error  # type: ignore[misc]
        raise
    late = desk.outcome(engine.state.global_step)
    if late is not None:
        raise late
    return result


@contextmanager
def _signals(take: Callable[[int], bool]) -> Iterator[bool]:
    """Offer SIGINT and SIGTERM to `take` first, until the end; where the program has handlers of its own, or
    in another thread than the main one, nothing is changed. Yields whether SIGINT is taken."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != pid and number == signal.SIGINT:
            return  # a process forked from this one, such as a DataLoader's: its parent ends it in order
        if os.getpid() == pid and take(number):
            return
        signal.signal(number, before.pop(number))
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(EXIT_STATUS)

    pid = os.getpid()
    for number in (signal.SIGINT, signal.SIGTERM):
        present = signal.getsignal(number)
        if _is_usual(present):
            before[number] = present
            signal.signal(number, handle)
    try:
        yield signal.SIGINT in before
    finally:
        for changed, present in before.items():
            signal.signal(changed, present)


def _is_usual(handler: Any) -> bool:
    """Whether a signal's handler is Python's, the system's or Ray's, rather than the program's own."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    return str(getattr(handler, "__module__", "")).startswith("ray.")
