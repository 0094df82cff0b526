"""Charts keep their peaks and labels, and stay small."""

import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

import pytest

from helpers.charts import draw_schedules
from helpers.charts.svg import INK, fit, spread, ticks
from helpers.charts.timelines import MOST_POINTS, Series, thin, timeline

pytestmark = pytest.mark.charts


def test_the_vram_chart_has_all_its_lines_and_stays_small():
    lines = [
        Series(name, [(i / 10, (i * factor) % 9.87) for i in range(2000)], dash=dash)
        for name, factor, dash in (("device-wide", 0.13, "2 3"), ("reserved", 0.7, "7 3"), ("main", 0.1, ""))
    ]
    phases = [("encode", 0.0, 20.0), ("denoise", 20.0, 170.0), ("decode", 190.0, 9.9)]
    drawing = timeline("all", lines, bands=phases, limits=[("budget", 12.0), ("forecast", 8.06)])
    root = ElementTree.fromstring(drawing)
    texts = [element.text or "" for element in root.iterfind("{*}text")]
    for label in ("budget 12.00", "forecast 8.06", "device-wide", "reserved", "main", "peak 9.8", "denoise"):
        assert any(text.startswith(label) for text in texts), label
    dashes = [line.get("stroke-dasharray") for line in root.iterfind("{*}polyline")]
    assert {"10 4", "2 4 8 4", "2 3", "7 3", None} <= set(dashes)
    assert len(drawing.encode()) < 12_000


def test_thinning_keeps_the_peak():
    points = [(float(i), 1.0) for i in range(1999)] + [(1999.0, 0.5)]
    points[777] = (777.0, 9.0)
    thinned = thin(points)
    assert len(thinned) <= MOST_POINTS
    assert (777.0, 9.0) in thinned
    assert thin(points[:5]) == points[:5]


def test_labels_are_spread_and_cut():
    placed = spread([100.0, 101.0, 99.0, 20.0], gap=13, limit=110)
    assert placed[3] == 20
    assert placed[2] < placed[0] < placed[1] <= 110
    assert placed[1] - placed[0] >= 13
    assert fit("denoise", 100) == "denoise"
    assert fit("denoise", 30).endswith("…")
    assert fit("denoise", 5) == ""


@pytest.mark.parametrize("top", [0.011, 0.3, 1, 1.12, 7.5, 13.44, 99.9, 3600])
def test_ticks_are_few_and_round(top):
    values = ticks(top)
    assert 3 <= len(values) <= 6
    assert values[0] == 0
    assert values[-1] <= top


class Visit(NamedTuple):
    copy: int
    start: int
    end: int
    layers: list


def test_a_schedule_shows_what_is_on_the_gpu_and_what_computes():
    modes = {
        "none": [Visit(0, 0, 12, [0, 1, 2, 3, 2, 3])],  # the second component computes twice
        "ahead": [Visit(0, 2, 6, [0, 1]), Visit(2, 6, 10, [2, 3])],
        "waits": [Visit(3 * n, 3 * n + 1, 3 * n + 3, [n]) for n in range(4)],
    }
    drawn = draw_schedules(modes, {"encoder": 2, "transformer": 2})
    assert drawn.text.splitlines() == [
        f"{mode}: at most {most} of 4 layers on the GPU" for mode, most in [("none", 4), ("ahead", 4), ("waits", 1)]
    ]
    root = ElementTree.fromstring(drawn.svg)
    texts = [element.text or "" for element in root.iterfind("{*}text")]
    assert "4 layers down, 12 ticks right; pale: on the GPU, dark: computing" in texts
    assert [text for text in texts if "ticks" in text][1:] == ["at most 4 · 12 ticks", "at most 4 · 10 ticks",
                                                               "at most 1 · 12 ticks"]  # fmt: skip
    computing = [line for line in root.iterfind("{*}polyline") if line.get("stroke") == INK]
    assert len(computing) == 2 + 2 + 4  # one line for each run of layers that compute one after another
