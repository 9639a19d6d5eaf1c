"""The cursor: a place in the data, as JSON."""

from __future__ import annotations

import json

from modules.cursor import Cursor


def test_a_cursor_survives_json() -> None:
    """A cursor that went through JSON is the same cursor."""
    cursor = Cursor(epoch=2, position=70, batches=9, seed=2**32 - 1, fingerprint="Numbers[100]")
    assert Cursor.from_dict(json.loads(json.dumps(cursor.to_dict()))) == cursor


def test_keys_of_later_versions_are_ignored() -> None:
    """A cursor with keys that this version does not know can be read; missing ones have their defaults."""
    assert Cursor.from_dict({"epoch": 3, "shards": [1, 2]}) == Cursor(epoch=3)
