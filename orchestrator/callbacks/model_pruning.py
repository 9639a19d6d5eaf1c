"""Prune a module while it trains: set the least important of its weights to zero, more at each epoch.

The masks are `torch.nn.utils.prune`'s, and are the same on all ranks: rank 0's. Checkpoints and the module at
the end hold plain weights with the zeros in them, unless they are asked to keep the masks. Arguments that
cannot work raise `MisconfigurationError`, at once where no module is needed to tell, else before training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.pruning_methods import PruningMethod, check_arguments, method_of
from orchestrator.errors import MisconfigurationError
from orchestrator.strategies.sharding import refuse_sharded

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer

T = TypeVar("T")
Parameters = Sequence[tuple[nn.Module, str]]


class ModelPruning(Callback):
    """Prunes at the end of each epoch.

    Args:
        pruning_fn: ``"l1_unstructured"``, ``"random_unstructured"``, ``"ln_structured"``,
            ``"random_structured"``, the function of that name in `torch.nn.utils.prune`, or a subclass of its
            `BasePruningMethod`.
        parameters_to_prune: Pairs of a module and the name of its parameter; all when empty, but for
            structured pruning those alone that have more than one dimension.
        parameter_names: With no pairs, the names to take; weight and bias by default.
        use_global_unstructured: Compare the weights of all parameters, rather than of each by itself.
        amount: How many weights to prune (int), or which share of those left (float); or a function of the
            epoch.
        apply_pruning: Whether to prune, or a function of the epoch.
        make_pruning_permanent: Leave plain weights in checkpoints and at the end; False leaves the masks.
        use_lottery_ticket_hypothesis: After pruning, go back to the initial values of the weights that are
            left; or a function of the epoch. Frankle and Carbin, The Lottery Ticket Hypothesis, 2019.
        resample_parameters: Go back to new random values instead.
        pruning_dim: The dimension that structured pruning takes slices of.
        pruning_norm: The norm that ``ln_structured`` compares slices by.
        verbose: 1 prints how much is pruned, 2 also of each parameter.
        prune_on_train_epoch_end: False prunes at the end of validations instead.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    PARAMETER_NAMES: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(
        self,
        pruning_fn: Callable[..., Any] | str,
        parameters_to_prune: Parameters = (),
        parameter_names: list[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        check_arguments(amount, verbose, parameter_names, self.PARAMETER_NAMES)
        self._method: PruningMethod = method_of(
            pruning_fn, everywhere=use_global_unstructured, dim=pruning_dim, norm=pruning_norm
        )
        self._given = list(parameters_to_prune)
        self._names = tuple(parameter_names or self.PARAMETER_NAMES)
        self._amount = amount
        self._apply = apply_pruning
        self._permanent = make_pruning_permanent
        self._lottery = use_lottery_ticket_hypothesis
        self._resample = resample_parameters
        self._verbose = verbose
        self._at_train_epoch_end = prune_on_train_epoch_end
        self._parameters: list[tuple[nn.Module, str]] = []
        self._initial: dict[int, nn.Module] = {}

    def unused_hooks(self) -> frozenset[str]:
        """Prune at one of the two moments."""
        return frozenset({"on_validation_epoch_end" if self._at_train_epoch_end else "on_train_epoch_end"})

    def __getstate__(self) -> dict[str, Any]:
        """Leave the module's parts and copies with the process that trains."""
        return {**self.__dict__, "_parameters": [], "_initial": {}}

    # ---------------------------------------------------------------- hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find what is to be pruned, and keep its initial values if they are needed."""
        if stage != "fit":
            return
        refuse_sharded(
            trainer.strategy,
            type(self).__name__,
            "masks are found by comparing weights",
            "Use strategy='ddp', or prune after training.",
        )
        if trainer.world_size > 1 and not self._permanent:
            raise MisconfigurationError(
                "ModelPruning(make_pruning_permanent=False) leaves masks in the workers' modules, which "
                "the module "
                "of this script has not. Use True on a group, or one process."
            )
        self._parameters = self._find(pl_module)
        if self._lottery:
            self._initial = {id(module): copy.deepcopy(module) for module, _ in self._parameters}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, if this is the time for it."""
        self._run(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, if this is the time for it."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._run(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave plain weights."""
        if self._permanent:
            self.make_pruning_permanent(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save plain weights."""
        if self._permanent:
            for key in checkpoint.keys() & {"state_dict", "current_model_state"}:
                checkpoint[key] = _without_masks(checkpoint[key])

    # ---------------------------------------------------------------- pruning

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Put the zeros into the weights of `module`, and take the masks away."""
        for part in module.modules():
            hooks = [
                hook for hook in part._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)
            ]
            for hook in hooks:
                prune.remove(part, hook._tensor_name)

    def apply_pruning(self, amount: int | float) -> None:
        """Prune `amount` of the weights that are left."""
        self._method.prune(self._parameters, amount)

    def apply_lottery_ticket_hypothesis(self) -> None:
        """Set the weights that are left to their initial values, or to new ones."""
        for module, name in self._parameters:
            initial = self._initial[id(module)]
            if self._resample and callable(reset := getattr(initial, "reset_parameters", None)):
                reset()
            target = getattr(module, f"{name}_orig", None)
            if isinstance(target, Tensor):
                target.data.copy_(getattr(initial, name).data)

    def _run(self, trainer: Trainer) -> None:
        epoch = trainer.current_epoch
        amount = _of_epoch(self._amount, epoch)
        if not _of_epoch(self._apply, epoch) or not amount:
            return
        before = [self._pruned(item) for item in self._parameters] if self._verbose else []
        with torch.no_grad():
            self.apply_pruning(amount)
            self._agree(trainer)
            if _of_epoch(self._lottery, epoch):
                self.apply_lottery_ticket_hypothesis()
        for module, name in self._parameters:  # what forward would do, for those who look before
            mask, original = getattr(module, f"{name}_mask"), getattr(module, f"{name}_orig")
            setattr(module, name, mask.to(original.dtype) * original)
        if self._verbose and trainer.is_global_zero:
            self._tell(amount, before)

    def _agree(self, trainer: Trainer) -> None:
        """Take rank 0's masks: pruning may be random."""
        if trainer.world_size == 1 or trainer.strategy is None:
            return
        masks = [getattr(module, f"{name}_mask") for module, name in self._parameters]
        for mask, chosen in zip(
            masks, trainer.strategy.broadcast([mask.cpu() for mask in masks]), strict=True
        ):
            mask.copy_(chosen)

    def _find(self, pl_module: LightningModule) -> list[tuple[nn.Module, str]]:
        own = list(pl_module.modules())
        if self._given:
            for module, name in self._given:
                if not any(module is item for item in own) or not isinstance(
                    getattr(module, name, None), nn.Parameter
                ):
                    raise MisconfigurationError(
                        f"ModelPruning(parameters_to_prune=...) has ({type(module).__name__}, {name!r}), "
                        "which is no "
                        f"parameter of {type(pl_module).__qualname__}. Give pairs of one of its modules "
                        "and the name "
                        "of a parameter in it."
                    )
            found = list(self._given)
        else:
            found = [
                (module, name)
                for module in own
                for name in self._names
                if isinstance(parameter := module._parameters.get(name), nn.Parameter)
                and (parameter.dim() > 1 or not self._method.structured)
            ]
        if not found:
            raise MisconfigurationError(
                f"ModelPruning finds nothing to prune: {type(pl_module).__qualname__} has no parameters "
                "called "
                f"{' or '.join(self._names)}. Give parameters_to_prune."
            )
        return found

    def _pruned(self, item: tuple[nn.Module, str]) -> tuple[int, int]:
        """Return how many weights are pruned, of how many."""
        module, name = item
        mask = getattr(module, f"{name}_mask", None)
        total = cast(Tensor, getattr(module, name)).numel()
        return (0 if mask is None else int((mask == 0).sum())), total

    def _tell(self, amount: int | float, before: list[tuple[int, int]]) -> None:
        after = [self._pruned(item) for item in self._parameters]
        total = sum(count for _, count in after)
        old, new = (sum(count for count, _ in counts) for counts in (before, after))
        print(f"Pruned {self._method.name}: {old}/{total} -> {new}/{total} ({new / total:.2%})", flush=True)
        if self._verbose == 2:
            for (module, name), (was, _), (now, size) in zip(self._parameters, before, after, strict=True):
                print(
                    f"  {module}.{name}, amount {amount:.3g}: {was} -> {now} ({now / size:.2%})", flush=True
                )


def _of_epoch(value: T | Callable[[int], T], epoch: int) -> T:
    return value(epoch) if callable(value) else value


def _without_masks(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with the masked weights in the place of originals and masks."""
    plain = {}
    for key, value in state.items():
        if key.endswith("_orig") and (mask := state.get(f"{key[:-5]}_mask")) is not None:
            plain[key[:-5]] = value * mask
        elif not (key.endswith("_mask") and f"{key[:-5]}_orig" in state):
            plain[key] = value
    return plain
