"""ZeRO: optimizer state, gradients and weights are dealt to the ranks by DeepSpeed.

The loop stays ours: it says where accumulation windows end, runs backward, steps schedulers and writes
checkpoints, which hold whole tensors and are those of any other strategy. DeepSpeed runs the forward pass,
reduces, clips and steps. Each rank builds the whole module first, also for stage 3. Seen to work on CPUs with
Gloo, where DDP's numbers are met to the bit; it has not been run on GPUs. What ZeRO cannot do is refused by
name when the module is set up; a peer that dies makes the collective raise.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError
from orchestrator.hooks import overrides
from orchestrator.strategies.deepspeed_config import full_config
from orchestrator.strategies.in_step import RanksInStep, Steps
from orchestrator.strategies.specs import DeepSpeedStrategy
from orchestrator.strategies.zero_optimizer import Part, ZeroOptimizer, whole_part

_WHOLE = ("Adafactor", "Muon")
"""Optimizers whose arithmetic needs a parameter's shape, which a flat part has lost."""
_CALLBACKS = {
    "BaseFinetuning": "what needs gradients is dealt once",
    "BatchSizeFinder": "it tries on a copy of the module",
    "LearningRateFinder": "it tries on a copy of the module",
    "ModelPruning": "it changes weights",
    "StochasticWeightAveraging": "it changes weights",
    "WeightAveraging": "it changes weights",
}
"""Callbacks that read or change weights themselves, each with what is in the way."""


class Zero(RanksInStep):
    """The strategy of ranks that each keep a part of the optimizer's state, and perhaps of more.

    Args:
        device: Where this rank's part lives.
        spec: What the user asked for.
        precision: As `orchestrator.precision.parse_precision` returns it.
        clip: The largest norm of all gradients together; 0 for any.
        keeps: `bring_back` leaves whole weights on every rank, not on rank 0 alone.
    """

    name = "deepspeed"
    clips = True

    def __init__(
        self,
        device: torch.device,
        spec: DeepSpeedStrategy,
        precision: str,
        *,
        clip: float = 0.0,
        keeps: bool = False,
    ) -> None:
        super().__init__(device)
        self.spec = spec
        self.precision = precision
        self.clip = clip
        self.keeps = keeps
        self.training_step: Callable[..., Any]
        self.local_step: Callable[..., Any]
        self.optimizers: list[Optimizer] = []
        self._engine: Any = None
        self._optimizer: ZeroOptimizer | None = None
        self._notes: list[tuple[Any, set[str]]] = []
        self._trainable: frozenset[int] = frozenset()

    @property
    def deals_weights(self) -> bool:
        """Whether every forward pass gathers weights."""
        return self.spec.stage == 3

    # ---------------------------------------------------------------- setting up

    def setup(self, module: nn.Module, *, training: bool) -> None:
        """Make rank 0's weights everybody's; where only weights are dealt, deal them. Communicates."""
        if training:
            _refuse(module)
        module.to(self.device)
        for item in [*module.parameters(), *module.buffers()]:
            dist.broadcast(item.detach(), src=0)
        self._module = module
        self.training_step = self.local_step = getattr(module, "training_step", None)  # type: ignore[assignment]
        if not training and self.deals_weights:
            self._start(module, None)

    def adopt(self, module: nn.Module, optimizers: list[Optimizer]) -> list[Optimizer]:
        """Deal what the optimizer holds, and return one that steps the parts. Communicates.

        Raises:
            MisconfigurationError: It cannot be dealt.
        """
        if self._engine is not None:
            raise MisconfigurationError(
                "Trainer(strategy='deepspeed') has dealt the optimizer's state and cannot begin again with "
                "new optimizers. Configure them once."
            )
        if len(optimizers) > 1:
            raise MisconfigurationError(
                f"configure_optimizers returned {len(optimizers)} optimizers, and "
                "Trainer(strategy='deepspeed') deals the state of one. Use parameter groups, or "
                "strategy='fsdp'."
            )
        for optimizer in optimizers:
            if type(optimizer).__name__ in _WHOLE:
                raise MisconfigurationError(
                    f"configure_optimizers returned {type(optimizer).__name__}, whose step needs whole "
                    "parameters, and Trainer(strategy='deepspeed') deals flat parts. Use one that works "
                    "element by element, such as AdamW, or strategy='fsdp'."
                )
            for number, group in enumerate(optimizer.param_groups):
                if not any(item.requires_grad for item in group["params"]):
                    raise MisconfigurationError(
                        f"configure_optimizers returned an optimizer whose group {number} has no parameter "
                        "that needs gradients, and Trainer(strategy='deepspeed') deals those of each group. "
                        "Leave the group out."
                    )
            groups = [list(group["params"]) for group in optimizer.param_groups]
            self._start(module, optimizer)
            self._optimizer = ZeroOptimizer(optimizer, groups, self._engine, self.spec.stage)
        if self._engine is None and self.deals_weights:
            self._start(module, None)
        if self._engine is not None:
            self.training_step = self.local_step = self.remembering(self.training_step)
        return optimizers if self._optimizer is None else [cast(Optimizer, self._optimizer)]

    def _start(self, module: nn.Module, optimizer: Optimizer | None) -> None:
        """Hand the module and its optimizer to DeepSpeed, and note what was its own before. Communicates."""
        self._trainable = _trainable(module)
        self._notes = [(item, set(item.__dict__)) for item in [*module.modules(), *module.parameters()]]
        config = full_config(
            cast(dict[str, Any], self.spec.config),
            stage=self.spec.stage,
            clip=self.clip,
            precision=self.precision,
            offload_optimizer=self.spec.offload_optimizer and optimizer is not None,
            offload_parameters=self.spec.offload_parameters,
        )
        with _local_rank(self.device), _quiet():
            deepspeed = _deepspeed(self.device)
            self._engine, *_ = deepspeed.initialize(
                model=Steps(module), optimizer=optimizer, config=config, dist_init_required=False
            )
        self.steps = self._engine

    def follow(self, module: nn.Module) -> bool:
        """Refuse parameters that began or ceased to need gradients.

        Raises:
            MisconfigurationError: There are such.
        """
        if self._optimizer is not None and _trainable(module) != self._trainable:
            raise MisconfigurationError(
                "Parameters began or ceased to need gradients while training, and Trainer(strategy="
                "'deepspeed') deals them once, at its start. Freeze them in configure_model, or use "
                "strategy='ddp'."
            )
        return False

    # ---------------------------------------------------------------- steps

    def step_of(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return `step`, with the gathering of weights around it where they are dealt."""
        engine = self._engine
        if engine is None or not self.deals_weights:
            return step

        @functools.wraps(step)
        def run(*args: Any) -> Any:
            return engine(step, *args)

        return run

    def keep_pace(self, batches: Iterable[Any], along: Callable[[Any], None]) -> Iterable[Any]:
        """Return `batches`; where weights are dealt, with steps for others' sake behind them."""
        return super().keep_pace(batches, along) if self.deals_weights else batches

    def sync_gradients(self, on: bool) -> None:
        """Say whether the next backward ends a window, in which all that came together is reduced."""
        if self._optimizer is not None:
            self._engine.set_gradient_accumulation_boundary(on)

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing is left to do: the backward of a window's end reduces."""

    def reduce_after_backward(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing is left to do: the backward has reduced."""

    def scale_gradients(self, parameters: Iterable[nn.Parameter], factor: float | Tensor) -> None:
        """Multiply this rank's part of the reduced gradients by `factor`.

        Raises:
            RuntimeError: DeepSpeed has them in the host's memory, where it has taken their norm already.
        """
        zero = self._engine.optimizer
        if self.spec.offload_optimizer:
            raise RuntimeError(
                "Gradients are to be scaled behind the backward pass (a loss of loss_sum and loss_count, or "
                "an accumulation window that ended early), and DeepSpeedStrategy(offload_optimizer=True) has "
                "them on the host by then. Use offload_optimizer=False, or strategy='fsdp'."
            )
        parts = [item for group in zero.averaged_gradients.values() for item in group or ()]
        if parts:
            torch._foreach_mul_(parts, factor)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """There is nothing to keep that whole tensors do not hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to take back."""

    def load_weights(self, module: nn.Module, state: dict[str, Any], *, strict: bool) -> None:
        """Load whole tensors, of which parameters that are dealt already take their part."""
        if self._engine is None:
            module.load_state_dict(state, strict=strict)
            return
        with self._gathered(list(module.parameters()), writes=True):
            module.load_state_dict(state, strict=strict)
        if self._optimizer is not None:
            self._engine.optimizer.refresh_fp32_params()

    def load_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Load whole tensors, of which each rank takes its part."""
        optimizer.load_state_dict(state)

    def module_state(self, module: nn.Module) -> dict[str, Any]:
        """Return the state dict with whole tensors on rank 0. Communicates where weights are dealt."""
        state: dict[str, Any] = module.state_dict()
        if self._engine is not None:
            for name, item in module.named_parameters(remove_duplicate=False):
                if name in state:
                    with self._gathered([item]):
                        state[name] = self._on_first(item.detach())
        return state

    def whole_tensor(self, item: Any) -> Any:
        """Return the whole tensor of an optimizer's state on rank 0, and nothing in its place elsewhere."""
        return self._on_first(whole_part(item)) if isinstance(item, Part) else item

    def _on_first(self, tensor: Tensor) -> Tensor:
        return tensor.cpu().clone() if self.rank == 0 else torch.empty(0, dtype=tensor.dtype)

    def _gathered(
        self, parameters: list[nn.Parameter], *, writes: bool = False
    ) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which parameters are whole; with `writes`, rank 0's changes are everybody's."""
        if not self.deals_weights:
            return contextlib.nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        return cast(
            contextlib.AbstractContextManager[Any],
            GatheredParameters(parameters, modifier_rank=0 if writes else None),
        )

    # ---------------------------------------------------------------- the end

    def bring_back(self, module: nn.Module) -> None:
        """Put whole weights in the place of parts, and take everything of DeepSpeed's off. Communicates."""
        if self._engine is None:
            return
        stays = self.keeps or self.rank == 0
        whole: dict[nn.Parameter, Tensor] = {}
        for item in module.parameters():
            with self._gathered([item]):
                whole[item] = item.detach().clone() if stays else torch.empty(item.shape, device="meta")
        self._take_apart()
        for item in whole if stays else ():
            item.data = whole[item]
        if not stays:
            _replace(module, whole)

    def _take_apart(self) -> None:
        """End DeepSpeed's engine, and forget what it noted in parameters and modules."""
        engine, self._engine, self.steps, self._optimizer = self._engine, None, None, None
        engine.destroy()
        for item, own in self._notes:
            if isinstance(item, nn.Module) and type(item._parameters) is not dict:
                item.__dict__["_parameters"] = dict(item._parameters.items())
            for name in [name for name in item.__dict__ if name not in own and _is_deepspeeds(name, item)]:
                del item.__dict__[name]
            if isinstance(item, nn.Parameter):
                item.grad = None
        self._notes = []

    def teardown(self) -> None:
        """Let go of the module, and of the process group."""
        if self._engine is not None:
            with contextlib.suppress(Exception):
                self._take_apart()
        self._module = self._last = self.steps = None
        _forget_group()


def _refuse(module: nn.Module) -> None:
    """Refuse a module whose training ZeRO cannot do.

    Raises:
        MisconfigurationError: It is such a one.
    """
    name = type(module).__qualname__
    if not getattr(module, "automatic_optimization", True):
        raise MisconfigurationError(
            f"{name}.automatic_optimization is False, and Trainer(strategy='deepspeed') reduces "
            "gradients and steps by itself. Use automatic optimization, or strategy='ddp'."
        )
    if overrides(cast(LightningModule, module), "configure_gradient_clipping", LightningModule):
        raise MisconfigurationError(
            f"{name}.configure_gradient_clipping has no gradients to clip under "
            "Trainer(strategy='deepspeed'): they are dealt to the ranks. Use "
            "Trainer(gradient_clip_val=...), or strategy='fsdp'."
        )
    if "training_step" in module.__dict__:
        raise MisconfigurationError(
            f"{name}.training_step is compiled, and DeepSpeed's hooks cannot be compiled with it under "
            "Trainer(strategy='deepspeed'). Leave torch.compile out, or use strategy='fsdp'."
        )
    for callback in cast(Any, module).trainer.callbacks:
        for base in type(callback).__mro__:
            if base.__name__ in _CALLBACKS:
                raise MisconfigurationError(
                    f"{type(callback).__qualname__} does not work with Trainer(strategy='deepspeed'): "
                    f"{_CALLBACKS[base.__name__]}. Leave it out, or use strategy='ddp'."
                )


def _trainable(module: nn.Module) -> frozenset[int]:
    """Return which parameters need gradients."""
    return frozenset(id(item) for item in module.parameters() if item.requires_grad)


def _is_deepspeeds(name: str, item: Any) -> bool:
    """Whether an attribute that came while training is DeepSpeed's; any of a parameter's is."""
    return isinstance(item, nn.Parameter) or name.startswith(
        ("ds_", "_ds", "_original_parameters", "_external_params", "_z3", "pre_bwd_fn", "post_bwd_fn")
    )


def _replace(module: nn.Module, whole: dict[nn.Parameter, Tensor]) -> None:
    """Put parameters without storage in the place of the module's."""
    made = {item: nn.Parameter(value, requires_grad=item.requires_grad) for item, value in whole.items()}
    for owner in module.modules():
        for name, item in owner._parameters.items():
            if item is not None:
                owner._parameters[name] = made[item]


@contextlib.contextmanager
def _local_rank(device: torch.device) -> Iterator[None]:
    """A context in which the environment says that the local rank is the device's number.

    DeepSpeed takes its device from there; Ray may show a worker its own GPU alone, as number 0.
    """
    before = os.environ.get("LOCAL_RANK")
    if device.index is not None or before is None:
        os.environ["LOCAL_RANK"] = str(device.index or 0)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("LOCAL_RANK", None)
        else:
            os.environ["LOCAL_RANK"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context in which DeepSpeed does not tell what it has built, nor its imports what they dislike."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _deepspeed(device: torch.device) -> Any:
    """Return the package, told which kind of device it is for, and to be quiet."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(max(logger.level, logging.WARNING))
    return deepspeed


def _forget_group() -> None:
    """Make DeepSpeed forget the process group, which ends with the call; the next call has another."""
    if "deepspeed" in sys.modules:
        from deepspeed.comm import comm
        from deepspeed.runtime.zero import parameter_offload
        from deepspeed.utils import groups

        groups._release_process_group_references()
        comm.cdb = None
        parameter_offload.FWD_MODULE_STACK.clear()
