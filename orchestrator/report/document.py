"""The form that all pages share: one file that opens anywhere, with its style and script inside.

Content is HTML whose makers have escaped what users wrote; titles, notes and names are plain text and escaped
here. Parts without content are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import resources


def document(title: str, parts: Iterable[str], package: str, script: str, style: str = "") -> str:
    """Return a page.

    Args:
        title: What it is about.
        parts: Of its body.
        package: Whose files `script` and `style` are.
        script: Name of a file.
        style: Name of a file of rules besides those that all pages share.
    """
    own = _read(package, style) if style else ""
    return _read(__package__, "page.html").format(
        title=escape(title),
        style=_read(__package__, "page.css") + own,
        script=_read(package, script),
        body="\n".join(part for part in parts if part),
    )


def section(title: str, content: str, note: str = "") -> str:
    """Return a part with a heading, and below it what helps to read it."""
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{told}{content}</section>" if content else ""


def tiles(cells: Iterable[tuple[str, str, str]]) -> str:
    """Return boxes with a name, a value and a note each; without a value there is no box."""
    boxes = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        + (f'<dd class="note">{escape(note)}</dd></div>' if note else "</div>")
        for name, value, note in cells
        if value
    )
    return f'<dl class="tiles">{"".join(boxes)}</dl>'


def legend(items: Iterable[tuple[str, str]]) -> str:
    """Return what colours mean: a class and its words each; empty without items."""
    listed = "".join(f'<li><i class="{escape(kind)}"></i>{escape(words)}</li>' for kind, words in items)
    return f'<ul class="legend">{listed}</ul>' if listed else ""


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
