"""Checkpoints: what goes into one, how it is written so that a kill leaves no torn file, which ones are
kept.
"""

from __future__ import annotations
