"""How everything in `data/` is made. The folders mirror it: clips, miniatures, measurements."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout


def gpu_slug(device: str) -> str:
    """The device's name in the names of its records: "h100" for "NVIDIA H100 80GB HBM3"."""
    from helpers.forecast import find_gpu

    known = find_gpu(device)
    return (known.name if known else device).lower().replace(" ", "_")
