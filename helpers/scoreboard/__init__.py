"""Recorded runs side by side, the subject of lesson 06: rows from every record, the table, the charts, the clips.

    from helpers import scoreboard

    rows = scoreboard.measured() + scoreboard.yours("outputs")
    scoreboard.table(rows, sort_by="peak VRAM (GiB)")
    scoreboard.trade_off(rows, limit=12)

Memory is in GiB (2**30 bytes). Nothing here runs a model: figures come from records and published forecasts.
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "rows": ("Row", "by_set_up", "lesson_rows", "measured", "of_the_table", "published_forecasts", "seed", "seed_rows",
             "whole_runs", "yours"),
    "tables": ("COLUMNS", "SortableTable", "recorded", "table"),
    "sliced": ("sliced_records", "sliced_table"),
    "drawing": ("against", "grouped_bars", "trade_off"),
    "contact_sheet": ("MOMENTS", "continuations"),
})
