"""Fully sharded: weights, gradients and optimizer state are dealt to the ranks by torch's ``fully_shard``.

Every forward pass is a collective, so ranks run equally many: one without a batch repeats its last with
weight 0. The training step runs inside a wrapper whose forward it is, which is what is sharded, so the user's
module keeps its class and its names. Checkpoints are those of any other strategy: of whole tensors, or, with
``state_dict_type="sharded"``, a directory to which each rank writes its part. What
cannot be sharded is refused when the module is set up; a peer that dies makes the collective raise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from modules.checkpoint.shards import Dealt
from orchestrator.errors import MisconfigurationError
from orchestrator.strategies.fsdp_parts import FullyShardedParts
from orchestrator.strategies.in_step import RanksInStep, Steps
from orchestrator.strategies.sharding import refuse_manual
from orchestrator.strategies.specs import FSDPStrategy


class FullySharded(RanksInStep):
    """The strategy of ranks that each keep a part of everything.

    Args:
        device: Where this rank's part lives.
        spec: What the user asked for.
        compute_dtype: What weights are gathered in, where that is another type than theirs.
        keeps: `bring_back` leaves whole weights on every rank, not on rank 0 alone.
    """

    name = "fsdp"

    def __init__(
        self,
        device: torch.device,
        spec: FSDPStrategy,
        compute_dtype: torch.dtype | None = None,
        *,
        keeps: bool = False,
    ) -> None:
        super().__init__(device)
        self.keeps = keeps
        self.spec = spec
        self.dealing = FullyShardedParts(self) if spec.state_dict_type == "sharded" else None
        self.compute_dtype = compute_dtype
        self.training_step: Callable[..., Any]
        self.local_step: Callable[..., Any]
        self.optimizers: list[torch.optim.Optimizer] = []
        self._steps: Steps | None = None
        self._classes: dict[nn.Module, tuple[type, set[int], set[int]]] = {}

    def setup(self, module: nn.Module, *, training: bool) -> None:
        """Make rank 0's weights everybody's, and keep a part of them. Communicates."""
        if training:
            refuse_manual(module)
        module.to(self.device)
        for item in [*module.parameters(), *module.buffers()]:
            if not isinstance(item, DTensor):
                dist.broadcast(item.detach(), src=0)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        policy = (
            MixedPrecisionPolicy()
            if self.compute_dtype is None
            else MixedPrecisionPolicy(
                param_dtype=self.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        )
        options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
        if self.spec.reshard_after_forward is not None:
            options["reshard_after_forward"] = self.spec.reshard_after_forward
        if self.spec.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy()
        steps = Steps(module)
        units = _units(module, self.spec.classes(), self.spec.min_num_params)
        _refuse_ties(module, units)
        for part in steps.modules():
            self._classes[part] = (type(part), set(part._forward_pre_hooks), set(part._forward_hooks))
        for unit in units:
            fully_shard(unit, **options)
        fully_shard(steps, **options)
        self._steps = self.steps = steps
        self._module = module
        self.training_step = self.remembering(getattr(module, "training_step", None))
        self.local_step = self._reducing(self.training_step)

    def step_of(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return `step` with the gathering of weights around it."""
        steps = self._steps
        assert steps is not None, "setup comes before"

        @functools.wraps(step)
        def run(*args: Any) -> Any:
            return steps(step, *args)

        return run

    def _reducing(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return `step` with a backward that reduces, wherever it stands in its window."""

        def run(*args: Any) -> Any:
            self.sync_gradients(True)
            return step(*args)

        return run

    def run_along(self) -> Any:
        """Run the last training step again, without its logging, and return its outputs. Communicates."""
        self.sync_gradients(True)
        return super().run_along()

    def release(self) -> None:
        """Let go of whole weights that are kept since a forward pass without a backward."""
        for unit in self._steps.modules() if self._steps is not None else ():
            if isinstance(unit, FSDPModule):
                unit.reshard()

    def module_state(self, module: nn.Module) -> dict[str, Any]:
        """Return the state dict with whole tensors on rank 0. Communicates."""
        self.release()
        state: dict[str, Any] = self.whole(module.state_dict())
        return state

    def sync_gradients(self, on: bool) -> None:
        """Say whether the next backward reduces; without, ranks keep whole gradients until one does."""
        cast(FSDPModule, self._steps).set_requires_gradient_sync(on)

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing is left to do: every backward of an accumulation window's end reduces."""

    def follow(self, module: nn.Module) -> bool:
        """What needs gradients is looked up in each backward."""
        return False

    def reduce_after_backward(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing is left to do: the backward has reduced."""

    def state_dict(self) -> dict[str, Any]:
        """There is nothing to keep: weights are reduced one unit after the other."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to take back."""

    def load_weights(self, module: nn.Module, state: dict[str, Any], *, strict: bool) -> None:
        """Load whole tensors, of which parameters that are sharded already take their part."""
        own = dict(module.named_parameters())
        placed = {name: _like(item, own.get(name)) for name, item in state.items()}
        module.load_state_dict(placed, strict=strict)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load whole tensors, of which each rank takes its part."""
        parameters = [item for group in optimizer.param_groups for item in group["params"]]
        order = [index for group in state["param_groups"] for index in group["params"]]
        owner = dict(zip(order, parameters, strict=True))
        parts = {
            index: {name: _like(item, owner.get(index)) for name, item in entry.items()}
            for index, entry in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": parts})

    def whole_tensor(self, item: Any) -> Any:
        """Return the whole tensor on rank 0, and nothing in its place elsewhere."""
        if not isinstance(item, DTensor):
            return item
        full = item.full_tensor()
        return full.detach().cpu() if self.rank == 0 else torch.empty(0, dtype=full.dtype)

    def bring_back(self, module: nn.Module) -> None:
        """Put whole weights in the place of parts, and take all hooks off. Communicates."""
        if self._steps is None:
            return
        self.release()
        made: dict[int, nn.Parameter] = {}
        for owner in module.modules():
            for name, item in list(owner._parameters.items()):
                if isinstance(item, DTensor):
                    if id(item) not in made:
                        plain = item.detach().full_tensor()
                        if self.rank > 0 and not self.keeps:
                            plain = torch.empty(item.shape, dtype=item.dtype, device="meta")
                        elif not self.keeps:
                            plain = plain.cpu()
                        made[id(item)] = nn.Parameter(plain, requires_grad=item.requires_grad)
                    owner._parameters[name] = made[id(item)]
        self._take_apart()

    def _take_apart(self) -> None:
        """Give modules back their classes and hooks, and forget what sharding noted in them."""
        for item, (kind, before, after) in self._classes.items():
            if type(item) is not kind:
                item.__class__ = kind
            for hooks, own in ((item._forward_pre_hooks, before), (item._forward_hooks, after)):
                for key in [key for key in hooks if key not in own]:
                    del hooks[key]
                    item._forward_pre_hooks_with_kwargs.pop(key, None)
                    item._forward_hooks_with_kwargs.pop(key, None)
            for name in [name for name in item.__dict__ if name.startswith("__composable")]:
                del item.__dict__[name]
        self._classes = {}

    def teardown(self) -> None:
        """Forget the wrapper."""
        self._steps = self.steps = self._module = self._last = None
        self._classes = {}


def _like(value: Any, parameter: Any) -> Any:
    """Return this rank's part of a tensor that belongs to a sharded parameter; anything else as it is."""
    if isinstance(value, Dealt):
        value = value.whole()
    if (
        isinstance(value, Tensor)
        and isinstance(parameter, DTensor)
        and not isinstance(value, DTensor)
        and value.shape == parameter.shape
    ):
        moved = value.to(parameter.device)
        # Every rank has read the whole, so none needs to be sent a part.
        return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def _units(module: nn.Module, classes: tuple[Any, ...], least: int | None) -> list[nn.Module]:
    """Return the submodules that are gathered by themselves, inner ones first."""
    found: list[nn.Module] = []
    taken: set[int] = set()
    for item in reversed(list(module.modules())):  # inner ones come before those that hold them
        if item is module or isinstance(item, FSDPModule):
            continue
        own = {id(parameter): parameter.numel() for parameter in item.parameters()}
        rest = sum(size for key, size in own.items() if key not in taken)
        wanted = isinstance(item, classes) or (least is not None and rest >= least)
        if rest and wanted and not isinstance(item, (nn.ModuleList, nn.ModuleDict)):
            found.append(item)
            taken |= own.keys()
    return found


def _refuse_ties(module: nn.Module, units: list[nn.Module]) -> None:
    """Refuse a weight that two units share: each would gather and reduce it.

    Raises:
        MisconfigurationError: There is one.
    """
    home: dict[int, tuple[int, str]] = {}
    unit_of = {id(item): index for index, unit in reversed(list(enumerate(units))) for item in unit.modules()}
    for prefix, owner in module.named_modules():
        unit = unit_of.get(id(owner), -1)
        for name, item in owner._parameters.items():
            if item is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            first = home.setdefault(id(item), (unit, full))
            if first[0] != unit:
                raise MisconfigurationError(
                    f"Trainer(strategy='fsdp'): {first[1]} and {full} are one weight in two units of "
                    "sharding. Leave the class out of FSDPStrategy(auto_wrap=...), so that both are in one."
                )
