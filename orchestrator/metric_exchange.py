"""The value of a metric object over all ranks, from what each rank sends in the one exchange of an epoch.

A metric of torchmetrics reduces its own states: it asks a function of ours for the states of all ranks, and
gets what was exchanged already instead of communicating. A rank that has seen nothing contributes nothing,
and ranks may have seen unequally much. Metrics of another kind are merged one rank after the other. A metric
that keeps states of its own beside those of inner metrics, like torchmetrics' running windows, cannot be
served this way and synchronises by itself, on all ranks in the same order.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.metric_objects import is_synced

Share = dict[str, Any]
"""What one rank knows of one metric: ``{"state": ...}`` to be merged, ``{"parts": [...]}`` of torchmetrics,
``{"value": ...}`` of one that is not to be reduced over ranks, ``{"alone": True}`` of one that does it by
itself.
"""


def shares(metrics: Mapping[str, Any]) -> dict[str, Share]:
    """Return what this rank contributes to each of `metrics`, on the CPU and ready to be sent.

    Tensors that several metrics share are sent once.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # the first keeps its id from being another's

    def send(state: Any) -> Any:
        if isinstance(state, Tensor):
            if id(state) not in seen:
                seen[id(state)] = state, state.detach().cpu()
            return seen[id(state)][1]
        if isinstance(state, dict):
            return {key: send(value) for key, value in state.items()}
        return [send(value) for value in state]

    def share(metric: Any) -> Share:
        if not is_synced(metric):
            return {"state": send(metric.metric_state)}
        if not metric.sync_on_compute and metric.metric_state:
            return {"value": send(metric.compute())}
        if _synchronises_itself(metric):
            return {"alone": True}
        return {
            "parts": [
                {"updated": bool(part.update_called), "state": send(dict(part.metric_state))}
                for part in _parts(metric)
            ]
        }

    return {path: share(metric) for path, metric in metrics.items()}


def compute(metric: Any, shares: Sequence[Share]) -> Any:
    """Return the value of `metric` over the ranks that have sent `shares`; its own state stays.

    Args:
        metric: This rank's object.
        shares: What each rank has sent, by rank.
    """
    if "alone" in shares[0]:
        return metric.compute()
    if "value" in shares[0]:
        return shares[0]["value"]
    if "state" in shares[0]:
        return _merged(metric, shares)
    with contextlib.ExitStack() as stack:
        for index, part in enumerate(_parts(metric)):
            sent = [share["parts"][index] for share in shares]
            states = [item["state"] for item in sent if item["updated"]]
            stack.enter_context(_answering(part, states or [item["state"] for item in sent]))
        # Of a rank that has seen nothing itself; the states are those of ranks that have.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=r"The ``compute`` method of metric", category=UserWarning)
        return metric.compute()


def _merged(metric: Any, shares: Sequence[Share]) -> Any:
    own, synced = _copy(metric.metric_state), getattr(metric, "sync_on_compute", False)
    metric.reset()
    for sent in shares:
        metric.merge_state(sent["state"])
    if synced:
        metric.sync_on_compute = False
    try:
        return metric.compute()
    finally:
        if synced:
            metric.sync_on_compute = True
        metric.reset()
        metric.merge_state(own)


def _parts(metric: Any) -> list[Any]:
    """Return the metrics in `metric`, itself included, that hold states."""
    return [part for part in metric.modules() if is_synced(part) and part.metric_state]


def _synchronises_itself(metric: Any) -> bool:
    """Whether what `metric` asks of other ranks can only be known while it computes, or is nothing."""
    for part in metric.modules():
        if is_synced(part):
            inner = any(is_synced(item) for item in part.modules() if item is not part)
            if part.dist_sync_fn is not None or (inner and part.metric_state):
                return True
    return False


@contextlib.contextmanager
def _answering(metric: Any, states: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Let `metric` find the `states` of all ranks when it asks for them, and afterwards its own again.

    It asks with its own tensors, one after the other, and for a list with its elements. So each list is
    replaced by one element that stands for all elements of all ranks.
    """
    own = dict(metric.metric_state)
    answers: dict[int, list[Tensor]] = {}
    asked: list[Tensor] = []  # keeps them alive: an id is only one while its tensor is
    for key, value in own.items():
        on_cpu = isinstance(value, list) and metric.compute_on_cpu
        parts = [_to(state[key], torch.device("cpu") if on_cpu else metric.device) for state in states]
        if isinstance(value, list):
            answer = [part for item in parts for part in (item if isinstance(item, list) else [item])]
            answer = [part for part in answer if part.numel()] or answer
            question = answer[0].clone() if answer else None
        else:
            answer, question = parts, parts[0].clone()
        if question is None:
            setattr(metric, key, [])
            continue
        answers[id(question)] = answer
        asked.append(question)
        setattr(metric, key, [question] if isinstance(value, list) else question)

    def answer_for(tensor: Tensor, group: Any = None) -> list[Tensor]:
        return answers.get(id(tensor), [tensor])  # what was not put there is an empty list's stand-in

    before = metric.dist_sync_fn, metric.distributed_available_fn
    metric.dist_sync_fn, metric.distributed_available_fn = answer_for, lambda: True
    try:
        yield
    finally:
        metric.dist_sync_fn, metric.distributed_available_fn = before
        for key, value in own.items():
            setattr(metric, key, value)


def _to(state: Any, device: torch.device) -> Any:
    if isinstance(state, Tensor):
        return state.to(device)
    return [_to(value, device) for value in state]


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: [part.clone() for part in value] if isinstance(value, list) else value.clone()
        for key, value in state.items()
    }
