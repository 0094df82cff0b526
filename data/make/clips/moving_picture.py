"""Draw the README's moving picture: the end of each sample clip, and what lesson 01 made of it with the miniature.

for clip in excavator wood_chipper wheel_loader; do
    python -m helpers.run_lesson 01_ltx_video --out outputs/moving/$clip -p clip $clip
done
python -m data.make.clips.moving_picture outputs/moving  # data/pictures/continued.webp
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.make import ROOT
from helpers import clips

SIZE = (264, 148)
FPS = 12
BAR = 8  # pixels below the pictures: grey while the clip's own frames play, orange for new ones
GREY, ORANGE = (150, 150, 150), (213, 94, 0)
PATH = ROOT / "data" / "pictures" / "continued.webp"


def strip(folder: Path) -> np.ndarray:
    """The last second of a clip and the first of its continuation, `np.uint8` [2 * FPS, H, W, 3]."""
    record = json.loads(next(folder.rglob("run.json")).read_text(encoding="utf-8"))
    film = clips.read(next(folder.rglob("continued.mp4")))
    join = round((record["joined"]["join_seconds"] - film.start) * film.fps)
    step = round(film.fps / FPS)
    return film.fit(*SIZE).frames[join - FPS * step : join + FPS * step : step]


def draw(folders: list[Path]) -> list[Image.Image]:
    """The frames of the picture: the clips side by side, with a bar below that says whose frame it is."""
    strips = [strip(folder) for folder in folders]
    width, height = SIZE
    pages = []
    for number in range(min(map(len, strips))):
        page = Image.new("RGB", ((width + BAR) * len(strips) - BAR, height + BAR), "white")
        for place, frames in enumerate(strips):
            left = place * (width + BAR)
            page.paste(Image.fromarray(frames[number]), (left, 0))
            colour = GREY if number < FPS else ORANGE
            ImageDraw.Draw(page).rectangle((left, height + 2, left + width - 1, height + BAR - 1), fill=colour)
        pages.append(page)
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with a folder for each clip, as above")
    pages = draw(sorted(path for path in parser.parse_args().folder.iterdir() if path.is_dir()))
    pages[0].save(PATH, save_all=True, append_images=pages[1:], duration=round(1000 / FPS), loop=0, quality=70, method=6)
    print(f"{PATH.relative_to(ROOT)}, {PATH.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
