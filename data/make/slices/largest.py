"""How long a video of each size a card can make, with sliced activations: data/largest.json and its picture.

python -m data.make.slices.largest          # some minutes
python -m data.make.slices.largest --draw   # only the picture

Wan2.2 A14B in Q4_K_M, leaves streamed, slices of 2,048 tokens, lean decoding. The peak grows in a straight line with
the frames, so two forecasts give a first answer, and a few more correct it.
"""

import json
import sys

from data.make import ROOT
from helpers.charts import svg
from helpers.forecast import CONTEXT_GIB, forecast
from helpers.models import model

MODEL, SLICE_TOKENS, FPS = "wan22_i2v_a14b", 2048, 16
CARDS = (4, 6, 8, 12, 16, 24)
SIZES = ((640, 384), (832, 480), (1024, 576), (1280, 720), (1920, 1088))
MOST_FRAMES = 321  # twenty seconds
COLOURS = ("#2b7bba", "#6a51a3", "#c51b8a", "#e6550d", "#1b7837", "#222")


def peak(size: tuple[int, int], frames: int) -> float:
    """The forecast's highest peak of all stages in GiB."""
    return forecast(
        MODEL, offload="group_leaf", width=size[0], height=size[1], num_frames=frames, slice_tokens=SLICE_TOKENS,
        quantization=model(MODEL).quantization,
    ).peak_vram_gib  # fmt: skip


def most_frames(card: int, size: tuple[int, int], short: float, long: float) -> tuple[int, float] | None:
    """The largest number of frames that fits, and its peak in GiB; `short` and `long` are the peaks of 41 and 161."""
    budget, slope = card - CONTEXT_GIB, (long - short) / 30  # GiB for 4 more frames
    frames = min(MOST_FRAMES, 41 + 4 * int((budget - short) // slope))
    while frames > 5 and peak(size, frames) > budget:
        frames -= 4
    while frames < MOST_FRAMES and peak(size, frames + 4) <= budget:
        frames += 4
    found = peak(size, frames)
    return (frames, found) if found <= budget else None


def main() -> None:
    path = ROOT / "data" / "largest.json"
    if len(sys.argv) > 1 and sys.argv[1] == "--draw":  # only the picture, from the recorded answers
        record = json.loads(path.read_text(encoding="utf-8"))
    else:
        record = searched()
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (ROOT / "data" / "pictures" / "largest.svg").write_text(drawn(record) + "\n", encoding="utf-8")


def searched() -> dict:
    """The most frames of each size on each card, and their forecast peak."""
    cards: dict[int, list] = {card: [] for card in CARDS}
    for size in SIZES:
        short, long = peak(size, 41), peak(size, 161)
        for card in CARDS:
            found = most_frames(card, size, short, long)
            frames, gib = found or (0, None)
            cards[card].append({"width": size[0], "height": size[1], "num_frames": frames, "peak_vram_gib": gib})
            print(size, card, frames, gib, flush=True)
    return {
        "model": MODEL, "quantization": model(MODEL).quantization, "offload": "group_leaf",
        "slice_tokens": SLICE_TOKENS, "context_gib": CONTEXT_GIB, "cards": cards,
    }  # fmt: skip


def drawn(record: dict) -> str:
    """Seconds of video over the size, a line per card."""
    frame = svg.Frame(56, 62, 560, 300, x_top=len(SIZES) - 0.5, y_top=21)
    body = [
        svg.text(14, 22, "How long a video a card can make: Wan2.2 A14B, sliced", size=13, weight="bold"),
        svg.text(14, 40, "seconds at 16 frames per second; a line per card; forecast, up to 20 s", fill=svg.GREY),
    ]
    for tick in (0, 5, 10, 15, 20):
        y = frame.y(tick)
        body += [svg.line(frame.left, y, frame.right, y, stroke=svg.GRID),
                 svg.text(frame.left - 8, y + 4, str(tick), size=10, anchor="end", fill=svg.GREY)]  # fmt: skip
    for place, (width, height) in enumerate(SIZES):
        body.append(svg.text(frame.x(place + 0.25), frame.bottom + 16, f"{width}x{height}", size=10, anchor="middle"))
    for (card, cells), colour in zip(record["cards"].items(), COLOURS, strict=True):
        points = [
            (frame.x(place + 0.25), frame.y(cell["num_frames"] / FPS))
            for place, cell in enumerate(cells) if cell["num_frames"]
        ]  # fmt: skip
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        body.append(svg.text(x + 8, y + 4, f"{card} GB", size=11, fill=colour))
    label = "; ".join(
        f"{card} GB: " + ", ".join(f"{c['width']}x{c['height']} {c['num_frames']} frames" for c in cells)
        for card, cells in record["cards"].items()
    )
    return svg.document(body, width=640, height=340, label=label)


if __name__ == "__main__":
    main()
