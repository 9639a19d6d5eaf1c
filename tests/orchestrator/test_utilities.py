"""What users find under ``orchestrator.utilities``."""

from __future__ import annotations

import pytest

import modules.combined
import orchestrator as pl


def test_names_are_found_and_unknown_ones_explained() -> None:
    """Every listed name is there, and an unknown one is answered with the list."""
    assert pl.utilities.CombinedLoader is modules.combined.CombinedLoader
    assert all(hasattr(pl.utilities, name) for name in pl.utilities.__all__)
    with pytest.raises(AttributeError, match=r"has no attribute 'CombineLoader'.*CombinedLoader"):
        _ = pl.utilities.CombineLoader  # type: ignore[attr-defined]
