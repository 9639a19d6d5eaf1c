"""The user's optimizer as the loop steps it where its parameters are dealt to ranks by ZeRO.

It looks like the optimizer that it stands for: ``isinstance``, ``param_groups``, ``state`` and all the rest
are that one's, whose parameters are this rank's flat parts. Only ``step`` goes through DeepSpeed, and
``state_dict`` speaks of the module's own parameters, in the order and the shape of an ordinary one's. A state
of other parameters is a `ValueError`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of an optimizer's state of which each rank has a part.

    Attributes:
        parameter: Whose state.
        key: Its name, such as ``exp_avg``.
    """

    parameter: nn.Parameter
    key: str


class ZeroOptimizer:
    """An optimizer whose parameters are dealt.

    Args:
        optimizer: The user's, which DeepSpeed has taken over.
        groups: The module's parameters by group, as they were before.
        engine: DeepSpeed's engine.
        stage: ZeRO's.
    """

    def __init__(
        self, optimizer: Optimizer, groups: list[list[nn.Parameter]], engine: Any, stage: int
    ) -> None:
        self.optimizer = optimizer
        self.groups = groups
        self.stage = stage
        self._engine = engine

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure if there is one, and step. Communicates."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._engine.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the parameters' gradients; those that are reduced already are dropped by each step."""
        self._engine.optimizer.zero_grad(set_to_none=True)

    def parts_of(self, group: int) -> list[Tensor]:
        """Return this rank's flat parts of a group's parameters."""
        if self.stage < 3:
            return list(self.optimizer.param_groups[group]["params"])
        zero = self._engine.optimizer
        return [
            zero.fp32_partitioned_groups_flat[index]
            for index, owner in zero.sub_group_to_group_id.items()
            if owner == group
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the state by the module's parameters, with a `Part` in the place of each dealt tensor."""
        self._link()
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for number, parameters in enumerate(self.groups):
            flat = next((item for item in self.parts_of(number) if item in self.optimizer.state), None)
            entry = {} if flat is None else self.optimizer.state[flat]
            for index, parameter in enumerate(parameters, first):
                if entry and parameter.requires_grad:
                    state[index] = {
                        key: Part(parameter, key) if _is_dealt(value, flat) else copy.deepcopy(value)
                        for key, value in entry.items()
                    }
            own = self.optimizer.param_groups[number]
            groups.append(
                {
                    **{key: value for key, value in own.items() if key != "params"},
                    "params": list(range(first, first + len(parameters))),
                }
            )
            first += len(parameters)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of an ordinary optimizer, of which each rank takes its part.

        Raises:
            ValueError: It belongs to other parameters.
        """
        saved = state["param_groups"]
        if [len(group["params"]) for group in saved] != [len(group) for group in self.groups]:
            raise ValueError(
                f"The optimizer's state is one of groups of {[len(group['params']) for group in saved]} "
                f"parameters, and this optimizer has groups of {[len(group) for group in self.groups]}. Use "
                "the state of the same optimizer."
            )
        for own, group in zip(self.optimizer.param_groups, saved, strict=True):
            own.update({key: copy.deepcopy(value) for key, value in group.items() if key != "params"})
        found = {
            parameter: state["state"].get(index, {})
            for group, parameters in zip(saved, self.groups, strict=True)
            for index, parameter in zip(group["params"], parameters, strict=True)
        }
        for number, parameters in enumerate(self.groups):
            model = next((item for item in parameters if found[item]), None)
            if model is not None:
                self._make_room(number, found[model])
        self._link()
        for parameter, entry in found.items():
            for key, value in entry.items():
                if isinstance(value, Tensor) and value.ndim and parameter.requires_grad:
                    self._put(parameter, key, value)

    def _link(self) -> None:
        """Let parameters know their parts of the state; DeepSpeed does it once, after the first group's step,
        when other groups have none yet.
        """
        if self.stage < 3 and self.optimizer.state:
            zero = self._engine.optimizer
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _make_room(self, group: int, entry: dict[str, Any]) -> None:
        """Give a group's flat parts a state of the same keys as `entry`, of zeros where it is dealt."""
        for flat in self.parts_of(group):
            self.optimizer.state[flat] = {
                key: torch.zeros_like(flat)
                if isinstance(value, Tensor) and value.ndim
                else copy.deepcopy(value)
                for key, value in entry.items()
            }

    def _put(self, parameter: Any, key: str, value: Tensor) -> None:
        """Keep this rank's part of a whole tensor."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value.to(parameter.device).reshape(-1), key)
            return
        size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
        padded = nn.functional.pad(value.reshape(-1), (0, size * (rank + 1)))
        safe_set_local_optimizer_state(parameter, padded[size * rank :][:size].to(parameter.device), key)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The optimizer's class, for `isinstance`."""
        return type(self.optimizer)

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __repr__(self) -> str:
        return f"ZeroOptimizer({self.optimizer!r})"


def whole_part(part: Part) -> Tensor:
    """Return the whole tensor, of type float32 and its parameter's shape, on every rank. Communicates."""
    from deepspeed.utils import safe_get_full_optimizer_state

    found = safe_get_full_optimizer_state(part.parameter, part.key)
    assert isinstance(found, Tensor)
    return found


def _is_dealt(value: Any, flat: Tensor | None) -> bool:
    """Whether `value` has one element for each of the flat part's."""
    return isinstance(value, Tensor) and flat is not None and value.ndim > 0 and value.shape == flat.shape
