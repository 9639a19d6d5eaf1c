"""Ray's token authentication, decided explicitly so that Ray writes no token into HOME.

A local Ray gets a random token in the environment, from where its processes inherit it. Ray remembers what it
read of the environment, so after each change it is made to read again. In a version of Ray without tokens, or
with other inner doors to them, authentication is switched off explicitly. What the user has set stays as it
is.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

_MODE = "RAY_AUTH_MODE"
_TOKEN = "RAY_AUTH_TOKEN"


def set_up_for_a_new_cluster() -> None:
    """Set a mode if there is none, and a random token if the mode wants one and there is none."""
    if _MODE not in os.environ:
        os.environ[_MODE] = "token" if _doors() else "disabled"
    wants_token = os.environ[_MODE].lower() == "token"
    if wants_token and not (os.environ.get(_TOKEN) or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        os.environ[_TOKEN] = secrets.token_hex(32)
    reread()


def use_stored_token() -> None:
    """For a cluster found on this machine: use the user's token, if no mode is set, as Ray does."""
    doors = _doors()
    if doors is None or _MODE in os.environ:
        return
    _, loader = doors
    if loader.instance().has_token(ignore_auth_mode=True):
        os.environ[_MODE] = "token"
        reread()


def reread() -> None:
    """Have Ray read mode and token from the environment again."""
    doors = _doors()
    if doors is not None:
        settings, loader = doors
        settings.initialize("")
        loader.instance().reset_cache()


def _doors() -> tuple[Any, Any] | None:
    """Ray's settings and its token loader; None where this version has them not."""
    try:
        from ray import _raylet

        return _raylet.Config, _raylet.AuthenticationTokenLoader  # type: ignore[attr-defined]
    except (ImportError, AttributeError):
        return None
