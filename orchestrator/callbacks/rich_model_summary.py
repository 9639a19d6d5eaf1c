"""The module's summary as a table with lines, drawn by ``rich``.

Otherwise as `ModelSummary`: once, at the start of fit, through the log. The table holds no control
characters, so it reads the same on a terminal and in a file.
"""

from __future__ import annotations

import io

from orchestrator.callbacks.model_summary import ModelSummary
from orchestrator.summary import Summary

_LEFT = ("Name", "Type", "Mode")


class RichModelSummary(ModelSummary):
    """Shows a table with lines when fit starts; arguments as for `ModelSummary`."""

    def render(self, summary: Summary) -> str:
        """Return the table as text."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        columns = summary.columns
        table = Table()
        for title in columns:
            table.add_column(title, justify="left" if title in _LEFT else "right", overflow="fold")
        for row in zip(*columns.values(), strict=True):
            table.add_row(*(Text(cell) for cell in row))
        text = io.StringIO()
        Console(file=text, color_system=None, width=160, highlight=False).print(table)
        return "\n".join([*(line.rstrip() for line in text.getvalue().splitlines()), *summary.totals])
