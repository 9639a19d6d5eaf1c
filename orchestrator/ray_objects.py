"""Checks the objects of Ray's own that a Trainer takes, where the Trainer is made.

Nothing of Ray is imported for it: they are known by what they offer. Anything else is an error that names the
argument.
"""

from __future__ import annotations

from typing import Any

from orchestrator.errors import MisconfigurationError


def check_ray_objects(scaling_config: Any, placement_group: Any) -> None:
    """Refuse what is no ScalingConfig, or no placement group.

    Args:
        scaling_config: What was given as ``Trainer(scaling_config=...)``, or None.
        placement_group: What was given as ``Trainer(placement_group=...)``, or None.

    Raises:
        MisconfigurationError: One of them is something else.
    """
    if scaling_config is not None and not hasattr(scaling_config, "num_workers"):
        raise MisconfigurationError(
            f"Trainer(scaling_config={scaling_config!r}) is a {type(scaling_config).__name__}. Give a "
            "ray.train.ScalingConfig(num_workers=...), or use devices."
        )
    if placement_group is not None and not hasattr(placement_group, "bundle_specs"):
        raise MisconfigurationError(
            f"Trainer(placement_group={placement_group!r}) is a {type(placement_group).__name__}. Give what "
            "ray.util.placement_group([...]) returns."
        )
