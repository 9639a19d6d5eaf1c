"""The name under which Lightning's users catch what cannot work."""

from __future__ import annotations

from orchestrator.errors import MisconfigurationError as MisconfigurationException

__all__ = ["MisconfigurationException"]
