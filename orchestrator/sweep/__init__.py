"""Sweeps: many trials of one training, the bad ones stopped early."""

from __future__ import annotations
