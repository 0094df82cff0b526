"""Draw the sample clips and the true continuation of each.

    python -m data.make.clips.sample_clips      # writes data/clips/*.mp4

Three clips of 3 s at 1280x720 and 24 frames per second, each with the following 20 s in a separate file, in which the
machine does one thing after another. The wood chipper has sound, which is synthesised here: the motor's hum, the beat of
the blades, and a rattle for every chip.
"""

import argparse
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from helpers import clips

from .. import ROOT
from .scenes import FPS, render

FOLDER = ROOT / "data" / "clips"
SCENES = {  # file name: machine, action, speed, seed
    "excavator": ("excavator", "lowers its arm and digs", "", 8),
    "wood_chipper": ("wood chipper", "throws chips to the left", "", 13),
    "wheel_loader": ("wheel loader", "drives to the right", "slowly", 5),
}
THEN = {  # further actions, and when they begin, in seconds after the clip: `helpers.clips.what_happens` says the same
    "excavator": ((8, "raises its arm"), (10, "lowers its arm and digs")),
    "wood_chipper": ((6, "throws chips to the right"), (12, "throws chips to the left")),
    "wheel_loader": ((10 / 3, "drives to the left"), (12, "raises its bucket"), (14, "lowers its bucket")),
}
SECONDS, CONTINUES = 3, 20
SIZE = (1280, 720)
RATE = 44_100  # sound samples per second


def draw(name: str) -> np.ndarray:
    """All frames of a clip and its continuation, uint8 [T, H, W, 3]; drawn second by second to save memory."""
    machine, action, speed, seed = SCENES[name]
    seconds = []
    for second in range(SECONDS + CONTINUES):
        then = [(SECONDS + at - second, what) for at, what in THEN[name]]
        video, _ = render(machine, [seed], action, speed, start=float(second), frames=FPS, size=SIZE, then=then)
        seconds.append((video[0] * 255).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(seconds)


def chipper_sound(seconds: float, seed: int = 0) -> np.ndarray:
    """The motor with its harmonics, the beat of the blades and the rattle of the chips; int16 [samples], mono."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    motor = sum(np.sin(2 * np.pi * 55 * k * t + rng.uniform(0, 6)) / k**1.2 for k in range(1, 9))
    noise = np.convolve(rng.standard_normal(len(t)), np.ones(24) / 24, mode="same")
    blades = noise * (0.6 + 0.4 * np.sin(2 * np.pi * 11 * t)) * 2.2
    rattle = np.zeros_like(t)
    click = np.exp(-np.arange(1200) / 160) * rng.standard_normal(1200)
    for at in np.arange(0.02, seconds - 0.05, 0.15):
        i = int((at + rng.uniform(-0.02, 0.02)) * RATE)
        rattle[i : i + 1200] += click[: len(rattle[i : i + 1200])] * rng.uniform(0.3, 0.9)
    sound = 0.22 * motor + 0.30 * blades + 0.25 * rattle
    return (np.clip(sound * 0.28, -1, 1) * 32767).astype(np.int16)


def add_sound(video: Path, sound: np.ndarray) -> None:
    """Add a sound track to a video file; the video stream is copied unchanged."""
    with tempfile.TemporaryDirectory() as folder:
        track, joined = Path(folder) / "track.wav", Path(folder) / video.name
        with wave.open(str(track), "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
            file.writeframes(sound.tobytes())
        command = [
            clips.ffmpeg_path(), "-v", "error", "-i", video, "-i", track, "-c:v", "copy", "-c:a", "aac", "-b:a", "64k",
            "-movflags", "+faststart", joined,
        ]  # fmt: skip
        subprocess.run([str(word) for word in command], check=True)
        video.write_bytes(joined.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(SCENES), help=f"clips to draw (default: {' '.join(SCENES)})")
    quality = "x264 quality: lower values look better and make larger files (default: %(default)s)"
    parser.add_argument("--crf", type=int, default=20, help=quality)
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name in args.names:
        if name not in SCENES:
            parser.error(f"{name!r} is not one of {', '.join(SCENES)}")
        frames = draw(name)
        sound = chipper_sound(SECONDS + CONTINUES) if name == "wood_chipper" else None
        cut = SECONDS * FPS
        for suffix, picked, samples in (
            ("", slice(0, cut), slice(0, SECONDS * RATE)),
            ("_continues", slice(cut, None), slice(SECONDS * RATE, None)),
        ):
            path = FOLDER / f"{name}{suffix}.mp4"
            clip = clips.Clip(frames=frames[picked], fps=float(FPS), name=path.stem, path=None, has_audio=False)
            clips.write(path, clip, crf=args.crf)
            if sound is not None:
                add_sound(path, sound[samples])
            print(f"{path.name}: {len(clip)} frames, {path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
