"""Says at import when another folder called ``modules`` or ``cluster`` collides with this project's packages.

Both names are common in users' projects. Python would silently take whichever comes first on ``sys.path``;
here either order is one clear error. Folders without Python files are nobody's package and are left alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable

_OURS = ("modules", "cluster")
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def find_collision(name: str, path: Iterable[str], root: str) -> str | None:
    """Return the first folder or file on `path` but not in `root` that ``import name`` could mean.

    Args:
        name: A top-level package name.
        path: Entries as in ``sys.path``; the empty string is the working directory.
        root: The folder that holds this project's package of that name.
    """
    ours = os.path.realpath(os.path.join(root, name))
    for entry in path:
        if os.path.basename(entry) in ("site-packages", "dist-packages"):
            continue
        base = os.path.abspath(entry or os.getcwd())
        if os.path.isfile(os.path.join(base, name + ".py")):
            return os.path.join(base, name + ".py")
        folder = os.path.join(base, name)
        if os.path.realpath(folder) != ours and os.path.isdir(folder):
            with os.scandir(folder) as entries:
                if any(item.name.endswith(".py") for item in entries):
                    return folder
    return None


def check_for_shadowed_packages() -> None:
    """Raise `ImportError` when ``modules`` or ``cluster`` could mean two packages in this process."""
    for name in _OURS:
        other = find_collision(name, sys.path, _ROOT)
        if other is None:
            loaded = sys.modules.get(name)
            origin = getattr(loaded, "__file__", None) or _origin(name)
            if origin is not None and os.path.dirname(os.path.realpath(origin)) != os.path.realpath(
                os.path.join(_ROOT, name)
            ):
                other = os.path.dirname(origin)
        if other is not None:
            raise ImportError(
                f"Two packages are called '{name}': {os.path.join(_ROOT, name)}, which orchestrator "
                f"needs, and {other}. "
                f"Python can import only one of them. Rename {other}."
            )


def _origin(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin
