"""Says why a run stands still, from what its ranks are doing: which rank the others wait for, and at which
line of the user's code it is.

Most hangs of a group are one of a few: one rank is somewhere else while the others wait for it in a
collective; the ranks wait in different collectives, each for the others; all wait in the same one, so the
network or a device is to blame; or nobody waits, and all wait for data or compute. `diagnose` tells these
apart. It is a pure function of the ranks' stacks, loads and counts of collective calls, and it is never
surer than those allow: what may be slow rather than stuck has to last longer before it is told, and what is
seen in every long compilation is not told at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum

from cluster.rank_state import Frame, RankState
from cluster.ranks import WorkerInfo

IDLE = 0.2
"""The share of a core below which a thread counts as not computing."""
LONG, VERY_LONG = 3, 6
"""How many times the usual patience is taken where ranks may be slow rather than stuck."""

_COLLECTIVES = "torch.distributed.distributed_c10d"
_WRAPPERS = ("torch.distributed.c10d_logger",)
_BACKWARD = ("torch.autograd.graph", "_engine_run_backward")
_IN_BACKWARD = "backward, where gradients are averaged"
_EXCHANGES = {
    ("cluster.snapshots", "hand_over"): "the exchange of copies before a commit",
    ("cluster.membership", "rejoin"): "forming the process group anew",
}
_SLOW = frozenset({"importlib", "torch._dynamo", "torch._inductor", "torch.serialization"})
_LOADING = "torch.utils.data"
_WAY = 5
_KNOWN_PLACES = (
    ("torch.utils.data.dataloader", "it waits for the DataLoader's worker processes"),
    ("cluster.mailbox", "it waits for an answer of the driver"),
    ("threading", "it waits for another thread"),
    ("queue", "it waits for another thread"),
    ("subprocess", "it waits for a process that it started"),
    ("multiprocessing", "it waits for a process that it started"),
    ("ssl", "it waits for the network"),
    ("socket", "it waits for the network"),
)


class Verdict(StrEnum):
    """What kind of standstill it is."""

    ABSENT = "absent"  # some ranks are not where the others wait for them
    APART = "apart"  # all wait, in different collectives
    TOGETHER = "together"  # all wait, in the same collective
    ALONE = "alone"  # no rank waits for another


@dataclass(frozen=True, slots=True, kw_only=True)
class Autopsy:
    """Why a run stands still.

    Attributes:
        verdict: What kind of standstill.
        culprits: The ranks that the others wait for, or that call what the others do not; may be empty.
        line: The user's line at which the first culprit is; None where there is none.
        patience: How many times the usual patience the standstill must have lasted before it is told; None:
            it is not told.
        text: All of it in words.
    """

    verdict: Verdict
    culprits: tuple[int, ...]
    line: Frame | None
    patience: int | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """One rank, looked at closely.

    Attributes:
        waits: The collective that it waits in, or what else of other ranks; None where it does not.
        site: Where it waits: ranks that wait for each other wait at the same place.
    """

    worker: WorkerInfo
    state: RankState | None
    waits: str | None

    @property
    def site(self) -> tuple[object, ...]:
        frame = None if self.state is None else _place_of(self.state)
        return (self.waits, None if frame is None else (frame.module, frame.function, frame.line))


def diagnose(
    workers: Sequence[WorkerInfo],
    states: Mapping[int, RankState | None],
    still_s: float,
    slow: Collection[str] = (),
) -> Autopsy:
    """Say why a run stands still; pure.

    Args:
        workers: All workers, in rank order.
        states: What each rank is doing; None for one that does not answer.
        still_s: Seconds for which no rank has got on.
        slow: Modules, with what is in them, and functions in which a rank may take long while others wait.
    """
    sights = [
        _Sight(worker=item, state=states[item.rank], waits=_waits(states, item.rank)) for item in workers
    ]
    waiting = [item for item in sights if item.waits is not None]
    others = [item for item in sights if item.waits is None]
    patience: int | None
    if waiting and others:
        verdict, culprits = Verdict.ABSENT, others
        patience = max(_patience_with(item, {*_SLOW, *slow}) for item in others)
    elif waiting and len({item.site for item in waiting}) > 1:
        verdict, culprits, patience = Verdict.APART, _odd_ones(waiting), 1
    elif waiting:
        verdict, culprits, patience = Verdict.TOGETHER, [], LONG
    else:
        verdict, culprits = Verdict.ALONE, []
        patience = VERY_LONG if all(map(_is_stuck, others)) else None
    first = culprits[0].state if culprits else None
    return Autopsy(
        verdict=verdict,
        culprits=tuple(item.worker.rank for item in culprits),
        line=None if first is None else users_line(first),
        patience=patience,
        text=_describe(verdict, culprits, sights, still_s),
    )


def waits_in(state: RankState) -> str | None:
    """Return which collective, or what else of other ranks, a rank waits in; None where its stack shows none.

    >>> waits_in(RankState(frames=()))
    """
    for frame in state.frames:
        if frame.module == _COLLECTIVES:
            return frame.function
    for frame in state.frames:
        if (frame.module, frame.function) in _EXCHANGES:
            return _EXCHANGES[frame.module, frame.function]
    if state.has_returned or state.moved or state.load >= IDLE:
        return None
    last = state.frames[-1]
    if (last.module, last.function) == _BACKWARD:
        return _IN_BACKWARD
    if last.module.startswith(("torch.distributed", "torch.nn.parallel")) and last.module not in _WRAPPERS:
        return last.function
    return None


def users_line(state: RankState) -> Frame | None:
    """Return the innermost call that is the user's; None where there is none on the stack."""
    return next((frame for frame in reversed(state.frames) if frame.is_users), None)


def _waits(states: Mapping[int, RankState | None], rank: int) -> str | None:
    """As `waits_in`; and where no stack shows any waiting, as with NCCL, a rank that has made more collective
    calls than another waits for it in the last of them, even if it looks busy.
    """
    state = states[rank]
    if state is None:
        return None
    known = [other for other in states.values() if other is not None]
    if any(waits_in(other) for other in known):
        return waits_in(state)
    counts = [other.calls for other in known if other.calls is not None and not other.has_returned]
    if state.calls is None or state.has_returned or state.calls == min(counts):
        return None
    return f"its collective call number {state.calls}"


def _is_idle(sight: _Sight) -> bool:
    state = sight.state
    return state is not None and not state.moved and state.load < IDLE


def _is_stuck(sight: _Sight) -> bool:
    return _is_idle(sight) and sight.state is not None and not sight.state.has_returned


def _patience_with(sight: _Sight, slow: Set[str]) -> int:
    """How long a rank that others wait for may take before that is told."""
    state = sight.state
    if state is None:
        return LONG
    if state.has_returned:
        return 1
    if any(frame.function in slow or not slow.isdisjoint(_prefixes(frame.module)) for frame in state.frames):
        return VERY_LONG
    loads = any(frame.module.startswith(_LOADING) for frame in state.frames)
    return 1 if _is_idle(sight) and not loads and not state.holds_lock else LONG


def _prefixes(module: str) -> Iterator[str]:
    """Yield a module's name and the packages that it is in."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _odd_ones(waiting: Sequence[_Sight]) -> list[_Sight]:
    """Return who waits where the others do not: those in a collective that the user's code calls if others
    are in one of the framework's, else the fewest.
    """
    groups = _grouped(waiting)
    users = [group for group in groups if group[0].state is not None and _calls_it(group[0].state)]
    if len(users) == 1:
        return users[0]
    return min(groups, key=len) if len({len(group) for group in groups}) > 1 else []


def _calls_it(state: RankState) -> bool:
    """Whether the user's own line calls what the rank waits in."""
    place = _place_of(state)
    return place is not None and place.is_users


def _place_of(state: RankState) -> Frame | None:
    """Return the innermost call that is not torch's: what has called the collective."""
    kept = (frame for frame in reversed(state.frames) if not frame.module.startswith("torch."))
    return next(kept, None)


def _grouped(sights: Sequence[_Sight]) -> list[list[_Sight]]:
    """Put ranks that are at the same place together."""
    groups: dict[tuple[object, ...], list[_Sight]] = {}
    for item in sights:
        groups.setdefault((item.state is None, item.site), []).append(item)
    return list(groups.values())


# -------------------------------------------------------------------- words


def _describe(verdict: Verdict, culprits: Sequence[_Sight], sights: Sequence[_Sight], still_s: float) -> str:
    said = next((item.state.where for item in sights if item.state is not None and item.state.where), None)
    head = f"Autopsy: no rank has got on for {still_s:.0f} s" + (f" ({said})" if said else "") + "."
    lines = [f"{head} {_cause(verdict, culprits)} Nothing is stopped."]
    for group in _grouped(sights):
        lines += _describe_group(group)
    return "\n".join([*lines, _advice(verdict, culprits)])


def _cause(verdict: Verdict, culprits: Sequence[_Sight]) -> str:
    if verdict is Verdict.ABSENT:
        return f"The others wait for {_name(culprits)}."
    if verdict is Verdict.APART:
        return "The ranks wait in different collectives, each for the others" + (
            f": {_name(culprits)} differ{'s' if len(culprits) == 1 else ''}." if culprits else "."
        )
    if verdict is Verdict.TOGETHER:
        return "All ranks wait in the same collective: none is missing."
    return "No rank waits for another."


def _advice(verdict: Verdict, culprits: Sequence[_Sight]) -> str:
    if verdict is Verdict.APART:
        return (
            "Every rank must make the same collective calls in the same order. Look for one behind a "
            "condition that differs between ranks (`if self.trainer.is_global_zero`), or one made for each "
            "batch where ranks have unequal numbers of batches."
        )
    if verdict is Verdict.TOGETHER:
        return (
            "The network between the nodes, or a device, is to blame: `orchestrator doctor` tries both ends."
        )
    if verdict is Verdict.ALONE:
        return "What they wait for is not another rank: look at these lines."
    if any(item.state is not None and item.state.has_returned for item in culprits):
        return "Every rank must make the same collective calls: one that has ended makes none."
    return (
        "Look at that line; if it calls a collective that the others do not, every rank must make the same."
    )


def _describe_group(group: Sequence[_Sight]) -> Iterator[str]:
    state, several = group[0].state, len(group) > 1
    name = _name(group)
    if state is None:
        yield f"  {name} {'do' if several else 'does'} not answer."
        return
    if state.has_returned:
        yield f"  {name} {'have' if several else 'has'} returned."
        return
    if group[0].waits is not None:
        doing = f"wait{'' if several else 's'} in {group[0].waits}"
    elif state.holds_lock:
        doing = f"{'are' if several else 'is'} in native code that holds the interpreter's lock"
    elif all(map(_is_idle, group)):
        doing = f"{'do' if several else 'does'} not compute"
    else:
        doing = f"compute{'' if several else 's'}"
    known = None if group[0].waits is not None else _known_place(state)
    number = state.calls
    calls = "" if number is None else f", after {number} collective call{'' if number == 1 else 's'}"
    yield f"  {name} {doing}{f' ({known})' if known else ''}{calls}, at"
    line, last = users_line(state), _place_of(state) if group[0].waits is not None else state.frames[-1]
    for frame in dict.fromkeys(item for item in (line, last) if item is not None):
        yield f"    {frame.file}:{frame.line} in {frame.function}" + (f": {frame.text}" if frame.text else "")
    if line is None:
        way = [frame.function for frame in state.frames if not frame.module.startswith("torch.")]
        yield f"    by way of {', '.join(way[-1 - _WAY : -1])}"


def _known_place(state: RankState) -> str | None:
    """Return what a rank waits for, where its innermost calls tell."""
    for frame in reversed(state.frames):
        if frame.is_users:
            return None
        for module, words in _KNOWN_PLACES:
            if frame.module == module or frame.module.startswith(f"{module}."):
                return words
    return None


def _name(sights: Sequence[_Sight]) -> str:
    """Return such as `rank 2 on node 10.0.0.3 (pid 41)`, or `ranks 0, 1` for several."""
    if len(sights) == 1:
        worker = sights[0].worker
        return f"rank {worker.rank} on node {worker.node_ip} (pid {worker.pid})"
    return f"ranks {', '.join(str(item.worker.rank) for item in sights)}"
