"""Asking all workers something at once: what the user hears while it takes long."""

from __future__ import annotations

import logging
import time

import pytest

from cluster import actors

pytestmark = pytest.mark.ray


def test_a_long_wait_is_mentioned_once(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is late and how much time is left; a quick answer is not worth a word."""
    import ray

    monkeypatch.setattr(actors, "_SAY_AFTER_S", 1.0)
    wait = ray.remote(num_cpus=0)(lambda seconds: time.sleep(seconds))
    ray.get(wait.remote(0.0))  # its process is up
    deadline = time.monotonic() + 120.0
    with caplog.at_level(logging.INFO, logger="cluster"):
        actors.collect([wait.remote(3.0)], names=["worker 0"], doing="start", deadline=deadline)
        (told,) = caplog.messages
        assert "1 of 1 workers are yet to start: worker 0. They have 1" in told
        monkeypatch.setattr(actors, "_SAY_AFTER_S", 60.0)
        actors.collect([wait.remote(0.0)], names=["worker 0"], doing="start", deadline=deadline)
    assert caplog.messages == [told]
