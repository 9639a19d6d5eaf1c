"""The checkpoint file: what stands in it, and how it is read without trusting it."""

from __future__ import annotations

from modules.checkpoint.files import CheckpointError
from modules.checkpoint.format import plain, read

__all__ = ["CheckpointError", "plain", "read"]
