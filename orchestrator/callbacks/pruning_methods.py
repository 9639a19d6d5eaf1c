"""Says how `ModelPruning` prunes: which of torch's methods, over all parameters or each by itself.

Arguments are checked here, before there is a module; a combination that cannot work is a
`MisconfigurationError` that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils import prune

from orchestrator.errors import MisconfigurationError, suggest

_CLASSES: dict[str, type[prune.BasePruningMethod]] = {
    "l1_unstructured": prune.L1Unstructured,
    "ln_structured": prune.LnStructured,
    "random_structured": prune.RandomStructured,
    "random_unstructured": prune.RandomUnstructured,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningMethod:
    """One of torch's pruning methods with its options.

    Attributes:
        name: What to call it.
        kind: Its class.
        everywhere: Compare the weights of all parameters.
        structured: It takes whole slices.
        options: Further arguments of the class.
    """

    name: str
    kind: type[prune.BasePruningMethod]
    everywhere: bool
    structured: bool
    options: dict[str, Any] = field(default_factory=dict)

    def prune(self, parameters: Sequence[tuple[nn.Module, str]], amount: int | float) -> None:
        """Prune `amount` of the weights of `parameters` that are left, by masks."""
        if self.everywhere:
            prune.global_unstructured(list(parameters), pruning_method=self.kind, amount=amount)
            return
        for module, name in parameters:
            self.kind.apply(module, name, amount=amount, **self.options)


def method_of(pruning_fn: Any, *, everywhere: bool, dim: Any, norm: Any) -> PruningMethod:
    """Return the method that the arguments of `ModelPruning` mean.

    Raises:
        MisconfigurationError: There is none, or it lacks or contradicts another argument.
    """
    name = getattr(pruning_fn, "__name__", pruning_fn)
    kind = (
        pruning_fn if isinstance(pruning_fn, type) else _CLASSES.get(name) if isinstance(name, str) else None
    )
    if kind is None or not issubclass(kind, prune.BasePruningMethod):
        raise MisconfigurationError(
            f"ModelPruning(pruning_fn={pruning_fn!r}) is unknown.{suggest(name, _CLASSES)} Use one of "
            f"{', '.join(_CLASSES)}, or a subclass of torch.nn.utils.prune.BasePruningMethod."
        )
    structured = getattr(kind, "PRUNING_TYPE", None) == "structured"
    if everywhere and getattr(kind, "PRUNING_TYPE", None) != "unstructured":
        raise MisconfigurationError(
            f"ModelPruning(pruning_fn={name!r}, use_global_unstructured=True): only unstructured pruning "
            "can compare "
            "all parameters. Write use_global_unstructured=False."
        )
    options: dict[str, Any] = {}
    if structured and not isinstance(pruning_fn, type):
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise MisconfigurationError(
                f"ModelPruning(pruning_fn={name!r}, pruning_dim={dim!r}) needs the dimension to take "
                "slices of. "
                "Write pruning_dim=0 for output channels."
            )
        options["dim"] = dim
        if kind is prune.LnStructured:
            if norm is None:
                raise MisconfigurationError(
                    f"ModelPruning(pruning_fn={name!r}, pruning_norm=None) needs a norm. Write "
                    "pruning_norm=2, say."
                )
            options["n"] = norm
    elif structured:
        options = {key: value for key, value in (("dim", dim), ("n", norm)) if value is not None}
    return PruningMethod(
        name=str(name), kind=kind, everywhere=everywhere, structured=structured, options=options
    )


def check_arguments(
    amount: int | float | Callable[[int], int | float],
    verbose: int,
    parameter_names: list[str] | None,
    known: Sequence[str],
) -> None:
    """Check the arguments of `ModelPruning` that stand for themselves.

    Raises:
        MisconfigurationError: One of them cannot work.
    """
    number = isinstance(amount, int | float) and not isinstance(amount, bool)
    fits = number and (0 <= amount <= 1 if isinstance(amount, float) else amount >= 0)  # type: ignore[operator]
    if not callable(amount) and not fits:
        raise MisconfigurationError(
            f"ModelPruning(amount={amount!r}) is no amount. Write a share from 0.0 to 1.0, a number of "
            "weights, or a "
            "function of the epoch."
        )
    if verbose not in (0, 1, 2):
        raise MisconfigurationError(f"ModelPruning(verbose={verbose!r}). Write 0, 1 or 2.")
    unknown = [name for name in parameter_names or () if name not in known]
    if unknown:
        raise MisconfigurationError(
            f"ModelPruning(parameter_names={parameter_names!r}): {unknown[0]!r} is unknown."
            f"{suggest(unknown[0], known)} Use {' and '.join(known)}, or name parameters in "
            "parameters_to_prune."
        )
