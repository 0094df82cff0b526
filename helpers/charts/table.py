"""The table and the picture that show themselves in a notebook, and as text everywhere else."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "–"


def figure(value: float | None) -> str:
    """Two decimals, three below 1 (a miniature's step takes a few hundredths of a second), or a dash for `None`."""
    if value is None:
        return MISSING
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


@dataclass(frozen=True)
class Picture:
    """A finished chart that shows itself in a notebook; `text` describes it where no picture can be shown."""

    svg: str
    text: str

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.text}


@dataclass(frozen=True)
class Table:
    """A table that shows itself in a notebook, as HTML and as text; the first column names its row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self._html(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.columns, *self.rows)
        ]
        return "\n".join([self.caption, *lines])

    def _html(self) -> str:
        # By default a notebook aligns every column to the right, which suits figures only.
        columns = zip(self.columns, *self.rows, strict=True)
        styles = [' style="text-align: left"' if _of_words(cells) else "" for _, *cells in columns]
        head = "".join(
            f'<th scope="col"{style}>{html.escape(name)}</th>'
            for name, style in zip(self.columns, styles, strict=True)
        )
        body = ""
        for first, *others in self.rows:
            cells = "".join(
                f"<td{style}>{html.escape(cell)}</td>" for cell, style in zip(others, styles[1:], strict=True)
            )
            body += f'<tr><th scope="row"{styles[0]}>{html.escape(first)}</th>{cells}</tr>\n'
        caption = f"<caption>{html.escape(self.caption)}</caption>"
        return f"<table>\n{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def _of_words(cells: Sequence[str]) -> bool:
    """Whether most of a column's cells are words rather than figures; a dash is a missing figure."""
    filled = [cell for cell in cells if cell]
    return sum(cell[0] not in "0123456789.+-–<>" for cell in filled) > len(filled) / 2


class ShownAsTable(ABC):
    """A result that shows itself as the table that its `table` method returns."""

    @abstractmethod
    def table(self) -> Table:
        """The rows to show."""

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self.table()._repr_mimebundle_()
