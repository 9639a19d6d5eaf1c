"""Says which parts of a run need whole weights, and so cannot be had where each rank keeps a part of them.

A part that needs them asks here when it is set up, before a step has run: under ``fsdp`` a weight is a
`DTensor`, of which operations without a rule for sharding fail in the middle of training, or do nothing.
"""

from __future__ import annotations

from orchestrator.errors import MisconfigurationError


def refuse_sharded(strategy: object | None, what: str, why: str, instead: str) -> None:
    """Refuse what needs whole weights.

    Args:
        strategy: The run's strategy.
        what: As the user wrote it.
        why: What it does with whole weights, as a clause.
        instead: What to do, as a sentence.

    Raises:
        MisconfigurationError: The strategy deals weights to the ranks.
    """
    if getattr(strategy, "name", None) == "fsdp":
        raise _refusal(what, why, instead)


def refuse_manual(module: object) -> None:
    """Refuse a module that steps its optimizers itself.

    Raises:
        MisconfigurationError: `module` does.
    """
    if not getattr(module, "automatic_optimization", True):
        raise _refusal(
            f"{type(module).__qualname__}.automatic_optimization=False",
            "its optimizers would step within training_step, where weights are gathered",
            "Use strategy='ddp', or automatic optimization.",
        )


def _refusal(what: str, why: str, instead: str) -> MisconfigurationError:
    return MisconfigurationError(
        f"{what} and Trainer(strategy='fsdp'): {why}, and each rank keeps a part of them only. {instead}"
    )
