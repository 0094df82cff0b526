"""Drawing for notebooks: tables, timelines and bars that show themselves as HTML or SVG, and as text elsewhere.

    from helpers.charts import Bar, Picture, Series, Table, bars, timeline

`svg` has the parts that the charts are drawn with. The live meter redraws four times a second, so these are written
by hand: a picture takes a few milliseconds and some kilobytes, and the meter's thread can draw it safely.
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "table": ("MISSING", "Picture", "ShownAsTable", "Table", "figure"),
    "timelines": ("LIMIT_STYLES", "Series", "thin", "timeline"),
    "bar_charts": ("Bar", "bars"),
    "schedules": ("draw_schedules",),
    "mime": ("METER_JSON",),
})
