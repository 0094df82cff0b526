"""Draw how the sample clips go on, hop after hop: the picture in the README.

    for clip in excavator wood_chipper wheel_loader; do
        python -m helpers.run_lesson 08_go_on -p clip $clip -p seconds 20 -p compare False --out outputs; done
    python -m data.make.measurements.hop_sheet outputs     # writes data/pictures/go_on.png

Two rows for each clip: the last frames of ten hops, evenly over what was generated, and the true frames of these times.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from data.make import ROOT
from helpers import clips
from helpers.hops import Hops

PICTURE = ROOT / "data" / "pictures" / "go_on.png"
COLUMNS, GAP, WIDTH, COLOURS = 10, 3, 1440, 160


def strip(frames: list[np.ndarray]) -> np.ndarray:
    """Frames [H, W, 3] side by side, with a white gap below."""
    row = np.concatenate(frames, axis=1)
    return np.concatenate([row, np.full((GAP, *row.shape[1:]), 255, np.uint8)])


def rows_of(folder: Path) -> list[np.ndarray]:
    """The two rows of a run's folder.

    Raises:
        FileNotFoundError: If there is no run of lesson 08.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    hops = Hops(folder / "hops")
    which = np.linspace(0, len(hops) - 1, COLUMNS).round().astype(int)
    per_hop = len(hops.frames(0))
    moments = {(int(number) + 1) * per_hop - 1 for number in which}
    with av.open(clips.CLIPS / f"{record['clip']}_continues.mp4") as file:  # frame by frame: all of it is a gigabyte
        shown = [frame.to_ndarray(format="rgb24") for at, frame in enumerate(file.decode(video=0)) if at in moments]
    truth = clips.fit(np.stack(shown), record["width"], record["height"])
    return [strip([np.array(hops.frames(number)[-1]) for number in which]), strip(list(truth))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the out_dir of the runs")
    folder = parser.parse_args().folder / "go_on" / "ltx_video"
    rows = [row for clip in clips.bundled() for row in rows_of(folder / clip)]
    picture = Image.fromarray(np.concatenate(rows))
    picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    clips.save_image(PICTURE, picture.quantize(COLOURS))
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
