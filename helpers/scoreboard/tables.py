"""The table of lesson 06, which sets recorded runs side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence

from helpers.charts.table import MISSING, Table
from helpers.lesson.values import one_of
from helpers.scoreboard.rows import Row

COLUMNS = {  # heading: what it shows, and how
    "who": (lambda row: row.source, str),
    "set-up": (lambda row: row.set_up, str),
    "mode": (lambda row: row.offload, str),
    "device": (lambda row: row.device.removeprefix("NVIDIA "), str),
    "peak VRAM (GiB)": (lambda row: row.peak_gib, "{:.2f}".format),
    "forecast (GiB)": (lambda row: row.forecast_gib, "{:.2f}".format),
    "RAM (GiB)": (lambda row: row.ram_gib, "{:.1f}".format),
    "s/step": (lambda row: row.usual_step_seconds, "{:.3g}".format),
    "x baseline": (lambda row: row.ratio, "{:.2f}".format),
    "min/clip": (lambda row: row.clip_minutes, "{:.1f}".format),
    "notes": (lambda row: _notes(row), str),
}
# Sorts the rows by a column, by number where there is one and else by text; a second click reverses the order.
SORT = (
    "const i=this.cellIndex,b=this.closest('table').tBodies[0],d=this.dataset.d=-(this.dataset.d||-1),"
    "k=r=>{const t=r.cells[i].textContent,n=parseFloat(t);return isNaN(n)?t:n};"
    "[...b.rows].sort((p,q)=>{const x=k(p),y=k(q);return typeof x!==typeof y?(typeof x==='number'?-1:1):"
    "(x>y?1:x<y?-1:0)*d}).forEach(r=>b.append(r))"
)


class SortableTable(Table):
    """A `Table` that a click on a heading sorts, on pages that run scripts."""

    def _html(self) -> str:
        clickable = f'<th scope="col" onclick="{html.escape(SORT)}" title="sort by this column"'
        return super()._html().replace('<th scope="col"', clickable)


def table(rows: Sequence[Row], sort_by: str = "set-up", caption: str | None = None) -> SortableTable:
    """All rows, sorted by a heading of `COLUMNS`; rows without a figure there come last.

    Raises:
        ParameterError: If there is no such heading.
    """
    key, _ = COLUMNS[one_of("sort_by", sort_by, tuple(COLUMNS))]
    order = sorted(rows, key=lambda row: (key(row) is None, 0 if key(row) is None else key(row)))
    shown = [list(COLUMNS), *([_cell(row, name) for name in COLUMNS] for row in order)]
    kept = [i for i, name in enumerate(COLUMNS) if name in ("who", "set-up") or _filled(shown, i)]
    cells = [[row[i] for i in kept] for row in shown]
    return SortableTable(caption or f"{len(rows)} rows, sorted by {sort_by}", cells[0], cells[1:])


def recorded(rows: Sequence[Row], set_up: str) -> Table:
    """What each mode of a set-up needed at full size on a real GPU, for a lesson that runs without one.

    Args:
        rows: `measured()`.
        set_up: As `Row.set_up` has it, "SVD XT 1024x576x25" for example.

    Raises:
        ParameterError: If there is no such set-up.
    """
    own = [row for row in rows if row.set_up == one_of("set_up", set_up, tuple({row.set_up: 0 for row in rows}))]
    names = ("mode", "peak VRAM (GiB)", "s/step", "x baseline", "min/clip", "notes")
    cells = [[_cell(row, name) for name in names] for row in own if row.device == own[0].device]
    device = own[0].device.removeprefix("NVIDIA ")
    return Table(f"{set_up}, measured on one {device} with random weights", names, cells)


def _cell(row: Row, name: str) -> str:
    key, show = COLUMNS[name]
    value = key(row)
    return MISSING if value is None else show(value)


def _filled(cells: Sequence[Sequence[str]], column: int) -> bool:
    return any(row[column] not in ("", MISSING) for row in cells[1:])


def _notes(row: Row) -> str:
    notes = ["out of memory" if row.overflowed else f"failed: {row.failed}"] if row.failed else []
    notes += ["the experts are swapped once per clip"] if row.swap and not row.failed else []
    notes += ["OTHER LATENTS"] if row.same_latents is False else []
    return "; ".join(notes)
