"""Show clips: strips of frames for a page, with a player below.

    show(clip)                                          # a strip of frames and a player, in a notebook
    side_by_side({"generated": frames, "truth": clip})  # one strip above the other
    save_image("poster.png", poster(clip))
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from helpers.clips.clip import Clip, ClipError
from helpers.clips.fitting import fit
from helpers.clips.video.ffmpeg import ffmpeg_path
from helpers.files import replacing


def poster(
    frames: Clip | np.ndarray, count: int = 6, height: int = 160, captions: Sequence[str] | None = None
) -> Image.Image:
    """Draw evenly spaced frames in a row, including the first and the last, each with a caption below.

    Args:
        frames: A clip, or `np.uint8` [T, H, W, 3].
        count: How many frames to show; fewer if there are fewer.
        height: Height of each frame, in pixels.
        captions: One text per frame shown. By default the frames of a clip show their time in seconds, and those of
            an array have no caption.

    Raises:
        ValueError: If the number of captions differs from the number of frames shown.
    """
    pixels = frames.frames if isinstance(frames, Clip) else frames
    shown = np.unique(np.linspace(0, len(pixels) - 1, count).round().astype(int))
    if captions is None and isinstance(frames, Clip):
        captions = [f"{index / frames.fps:.1f} s" for index in shown]
    if captions is not None and len(captions) != len(shown):
        raise ValueError(f"{len(captions)} captions for {len(shown)} frames: give one for each frame shown.")

    width = max(1, round(height * pixels.shape[2] / pixels.shape[1]))
    font = ImageFont.load_default(max(11, height // 7))  # pages often show a strip at half its size
    gap = max(2, height // 40)
    line = round(font.size * 1.6) if captions else 0
    strip = Image.new("RGB", (len(shown) * (width + gap) - gap, height + line), "white")
    draw = ImageDraw.Draw(strip)
    for column, frame in enumerate(fit(pixels[shown], width, height)):
        left = column * (width + gap)
        strip.paste(Image.fromarray(frame), (left, 0))
        if captions:
            draw.text(
                (left + width / 2, height + line / 2),
                captions[column],
                fill="#444444",
                font=font,
                anchor="mm",
            )
    return strip


def side_by_side(clips: Mapping[str, Clip | np.ndarray], *, count: int = 6, height: int = 120) -> Image.Image:
    """Draw the `poster` of several clips below each other, each row with its name on the left.

    Args:
        clips: Clips or `np.uint8` [T, H, W, 3] arrays by name, for example "generated" and "truth".
        count: Frames in a row.
        height: Height of each frame, in pixels.
    """
    font = ImageFont.load_default(max(13, height // 8))
    margin = font.size
    rows = {name: poster(clip, count, height) for name, clip in clips.items()}
    indent = round(max(font.getlength(name) for name in rows)) + 2 * margin
    page = Image.new(
        "RGB",
        (
            indent + max(row.width for row in rows.values()),
            sum(row.height + margin for row in rows.values()) - margin,
        ),
        "white",
    )
    draw = ImageDraw.Draw(page)
    top = 0
    for name, row in rows.items():
        draw.text((margin, top + height / 2), name, fill="#111111", font=font, anchor="lm")
        page.paste(row, (indent, top))
        top += row.height + margin
    return page


def show(clip: Clip, *, count: int = 6, height: int = 160, captions: Sequence[str] | None = None) -> None:
    """Display a clip in a notebook: its `poster`, then a small player.

    The picture comes first because GitHub shows no players in notebooks. What there is to know about the clip's file is
    printed above it; outside a notebook, that is all.
    """
    from IPython import get_ipython
    from IPython.display import display

    for note in clip.notes:
        print(note)
    if get_ipython() is None:
        return
    import mediapy

    picture = io.BytesIO()
    poster(clip, count, height, captions).save(picture, "PNG")
    png = base64.b64encode(picture.getvalue()).decode("ascii")
    display(
        {"image/png": png, "text/plain": repr(clip)}, metadata={"image/png": {"alt": repr(clip)}}, raw=True
    )

    # Browsers play only 4:2:0 video, which needs even sides.
    scale = min(1.0, 240 / clip.height)
    width, height = (max(2, 2 * round(side * scale / 2)) for side in clip.size)
    mediapy.set_ffmpeg(ffmpeg_path())
    player = mediapy.show_video(
        fit(clip.frames, width, height), fps=clip.fps, qp=32, return_html=True, autoplay=False
    )
    display({"text/html": player, "text/plain": repr(clip)}, raw=True)


def save_image(path: str | Path, image: Image.Image) -> Path:
    """Write a picture as PNG; the file appears under its name only when it is complete.

    Raises:
        ClipError: If the file cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as temporary:
            image.save(temporary, "PNG")
    except OSError as error:
        raise ClipError(f"{path} cannot be written: {error}") from error
    return path
