"""Data parallel: every rank holds all weights, gradients are averaged by torch's `DistributedDataParallel`.

The arithmetic is DDP's own to the bit, because it is DDP that does it: the training step runs inside a
wrapper module whose forward it is. Where ranks have unequal batches the loops leave DDP aside for that step
and call `reduce_gradients`, in which a rank without a gradient counts as zero. With manual optimization,
where a training step runs backward several times for parts of the parameters, there is no wrapper: gradients
are reduced after each backward. A peer that dies makes the collective raise; a peer that hangs makes it time
out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator import batch_norm
from orchestrator.strategies.ranks import GroupOfRanks
from orchestrator.strategies.specs import DDPStrategy


class _TrainingStep(nn.Module):
    """A module whose forward is another's training step, so that DDP sees the forward pass begin and end."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.rehearsed: Tensor | None = None

    def forward(self, *args: Any) -> Any:
        if self.rehearsed is not None:
            return self.rehearsed
        return cast(Any, self.module).training_step(*args)


class _Touch(torch.autograd.Function):
    """Passes a value on; its backward gives the parameter a gradient of zeros, then goes on."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(parameter)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (parameter,) = ctx.saved_tensors
        return torch.zeros_like(parameter), gradients[0]


class DataParallel(GroupOfRanks):
    """The strategy of ranks that average gradients in the default process group.

    Args:
        device: Where this rank's copy of the module lives.
        spec: What the user asked for; torch's defaults when None.
        sync_batchnorm: Normalise batches over all ranks while training.
        joins: This rank takes another's place in a run: it wraps the module only in `reform`.
    """

    name = "ddp"
    in_step = False

    def __init__(
        self,
        device: torch.device,
        spec: DDPStrategy | None = None,
        *,
        sync_batchnorm: bool = False,
        joins: bool = False,
    ) -> None:
        super().__init__(device)
        self._joins = joins
        self.sync_batchnorm = sync_batchnorm
        self.spec = DDPStrategy() if spec is None else spec
        self.training_step: Callable[..., Any]
        self.local_step: Callable[..., Any]
        self.optimizers: list[torch.optim.Optimizer] = []
        self._synced: dict[nn.Module, type] = {}
        self._ddp: DistributedDataParallel | None = None
        self._followed: frozenset[int] = frozenset()

    def setup(self, module: nn.Module, *, training: bool) -> None:
        """Move the module to the device; when `training`, wrap it, which broadcasts rank 0's weights."""
        if self.device.type != "cpu":
            module.to(self.device)
        self.training_step = self.local_step = getattr(module, "training_step", None)  # type: ignore[assignment]
        if training and self.sync_batchnorm:
            self._synced = batch_norm.synchronize(module, self.device)
            self.local_step = self._step_apart(module)
        if training and not getattr(module, "automatic_optimization", True):
            self._set_up_manual(module)
        elif training and not self._joins:
            self._wrap(module)

    def leave(self, module: nn.Module) -> dict[str, Any]:
        """Let go of the process group, which is broken; return what `reform` needs on all ranks."""
        order = self.state_dict()
        self._ddp = None
        self.training_step = module.training_step  # type: ignore[assignment]
        return order

    def reform(self, module: nn.Module, order: dict[str, Any]) -> None:
        """Wrap the module anew in the next generation of the process group; ranks hold the same weights.
        Communicates.

        Args:
            module: The module.
            order: What `leave` returned on a rank that was there before.
        """
        self._wrap(module, init_sync=False)
        self.load_state_dict(order)

    def follow(self, module: nn.Module) -> bool:
        """Wrap anew where the set of parameters that need gradients is another: DDP reduces those that needed
        them when it was built. All ranks must have changed the same.
        """
        if not getattr(module, "automatic_optimization", True) or _trainable(module) == self._followed:
            return False
        self._ddp = None
        self.training_step = module.training_step  # type: ignore[assignment]
        self._wrap(module)
        return True

    def _wrap(self, module: nn.Module, *, init_sync: bool = True) -> None:
        self._followed = _trainable(module)
        if self._followed:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self._ddp = DistributedDataParallel(
                _TrainingStep(module), device_ids=ids, init_sync=init_sync, **self.spec.ddp_arguments()
            )
            hook = self.spec.ddp_comm_hook
            if hook is not None:
                self._ddp.register_comm_hook(self.spec.ddp_comm_state, _plainly_annotated(hook))
            self.training_step = self._ddp

    def _set_up_manual(self, module: nn.Module) -> None:
        """Begin with rank 0's weights; every training step begins with rank 0's buffers, as under DDP."""
        for tensor in [*module.parameters(), *module.buffers()]:
            _take_rank_0s(tensor.detach())
        buffers = list(module.buffers()) if self.spec.broadcast_buffers else []
        own_step = self.training_step

        def training_step(*args: Any) -> Any:
            for buffer in buffers:
                _take_rank_0s(buffer)
            return own_step(*args)

        self.training_step = training_step if buffers else own_step

    def _step_apart(self, module: nn.Module) -> Callable[..., Any]:
        """Return the training step with batch normalisation by this rank's batch alone."""
        own = cast(Any, module).training_step

        def step(*args: Any) -> Any:
            with batch_norm.apart(self._synced, self.device):
                return own(*args)

        return step

    def sync_gradients(self, on: bool) -> None:
        """Say whether the next backward reduces; sets what `DistributedDataParallel.no_sync` does."""
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = on

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients in one flat all-reduce a dtype; a gradient that no rank has stays None."""
        found = list(parameters)
        present = torch.tensor([float(item.grad is not None) for item in found])
        dist.all_reduce(present)  # on the CPU, over Gloo: no device waits
        kept = [item for item, ranks in zip(found, present.tolist(), strict=True) if ranks > 0]
        for dtype in dict.fromkeys(item.dtype for item in kept):
            group = [item for item in kept if item.dtype is dtype]
            parts = [torch.zeros_like(item) if item.grad is None else item.grad for item in group]
            flat = torch.cat([part.reshape(-1) for part in parts])
            dist.all_reduce(flat)
            flat /= self.world_size
            for item, mean in zip(group, flat.split([item.numel() for item in group]), strict=True):
                item.grad = (
                    mean.view_as(item).clone() if item.grad is None else item.grad.copy_(mean.view_as(item))
                )

    def reduce_after_backward(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients: without the wrapper backward has not."""
        self.reduce_gradients(parameters)

    def before_save(self) -> None:
        """Let DDP make its buckets anew now where it would before its second step: a run that goes on from
        the first has them then. Communicates.
        """
        if self._ddp is not None and self._ddp.reducer._rebuild_buckets():
            logger = self._ddp.logger
            assert logger is not None
            logger.set_runtime_stats_and_log()  # which notes the order

    def state_dict(self) -> dict[str, Any]:
        """Return the order in which DDP has found gradients to become ready; empty before it has.

        DDP reduces in buckets, and after its first step makes them anew in this order. From 3 ranks on the
        buckets show in the bits of the sums.
        """
        if self._ddp is None:
            return {}
        found = self._ddp._get_ddp_logging_data().get("rebuilt_per_bucket_param_indices", "")
        indices = [int(index) for bucket in str(found).split(",") for index in bucket.split()]
        return {"ready_order": indices} if indices else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give DDP the buckets that the run had, by a backward of zeros in the order that it had found."""
        order = state.get("ready_order")
        if self._ddp is None or not order:
            return
        parameters = [item for item in self._ddp.parameters() if item.requires_grad]
        if sorted(order) != list(range(len(parameters))):
            return  # another set of trainable parameters: its order is found anew
        wrapper = cast(_TrainingStep, self._ddp.module)
        loss = torch.zeros((), device=self.device, requires_grad=True)
        for index in reversed(order):
            loss = _Touch.apply(parameters[index], loss)  # type: ignore[no-untyped-call]
        wrapper.rehearsed = loss
        try:
            self._ddp.require_backward_grad_sync = True
            self._ddp().backward()
        finally:
            wrapper.rehearsed = None
        for item in parameters:
            item.grad = None

    def waited_s(self) -> float:
        """Return how long a step waits for gradients behind its own backward, in seconds, as DDP has sampled
        it: in the first steps and in every hundredth. 0.0 before it has.
        """
        if self._ddp is None:
            return 0.0
        found = self._ddp._get_ddp_logging_data()
        sent, along = "avg_backward_comm_time", "avg_backward_compute_comm_overlap_time"
        return max(0, int(found.get(sent, 0)) - int(found.get(along, 0))) / 1e9

    def teardown(self) -> None:
        """Drop the wrapper, so that its buckets and hooks go, and give layers their own class back."""
        self._ddp = None
        batch_norm.revert(self._synced)
        self._synced = {}


def _trainable(module: nn.Module) -> frozenset[int]:
    """Return which parameters need gradients, by identity."""
    return frozenset(id(item) for item in module.parameters() if item.requires_grad)


def _take_rank_0s(tensor: Tensor) -> None:
    """Fill `tensor` with rank 0's values, whatever its layout and type."""
    sent = tensor.contiguous()
    dist.broadcast(sent.view(torch.uint8) if sent.dtype is torch.bool else sent, src=0)
    if sent is not tensor:
        tensor.copy_(sent)


def _plainly_annotated(hook: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a hook that torch takes: it refuses annotations that are text, as postponed ones are."""
    annotations = getattr(hook, "__annotations__", {}).values()
    return (
        (lambda state, bucket: hook(state, bucket))
        if any(isinstance(item, str) for item in annotations)
        else hook
    )
