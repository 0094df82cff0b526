"""How everything in `data/` is made. The folders mirror it: clips, miniatures, measurements."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
