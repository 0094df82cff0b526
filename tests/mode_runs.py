"""Offload modes as measured runs, made up for the tests of comparisons and of records."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from helpers.measure.comparison import ModeRun

BASELINE = ModeRun("none", 14.21, 15.5, 16.1, 20.25, 1.5, 30.0, {"denoise": 3.0}, latents_difference=0.0)
MODEL = replace(BASELINE, offload="model", peak_allocated_gib=8.06, step_seconds=2.25, latents_difference=1e-3)
BROKEN = replace(
    BASELINE, offload="sequential", step_seconds=None, latents_difference=None, failed="NotImplementedError"
)
ON_CPU = replace(BASELINE, peak_allocated_gib=None, peak_reserved_gib=None, peak_device_gib=None)


def cells_of(shown) -> list[list[str]]:
    """The cells of a shown table, row by row."""
    root = ElementTree.fromstring(shown._repr_mimebundle_()["text/html"])
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
