"""The ffmpeg program, which decodes and encodes every clip; the package imageio-ffmpeg brings one."""

from __future__ import annotations

import functools
import shutil
import subprocess

from helpers.clips.clip import ClipError


def ffmpeg_path() -> str:
    """Returns the path of the ffmpeg program: the one of imageio-ffmpeg, or else the system's.

    Raises:
        ClipError: If there is none, or if it is too old.
    """
    try:
        import imageio_ffmpeg

        found = shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
    if not found:
        raise ClipError("no ffmpeg program was found: run `pip install imageio-ffmpeg`, which brings one.")
    if _is_too_old(found):
        raise ClipError(f"the program {found} is too old: run `pip install --upgrade imageio-ffmpeg`.")
    return found


@functools.cache
def _is_too_old(ffmpeg: str) -> bool:
    """Whether an ffmpeg program lacks an option that `_decode` gives it: it would take every clip for damaged."""
    return "Unrecognized option" in run([ffmpeg, "-hide_banner", "-nostdin", "-fps_mode", "passthrough"])[1]


def run(command: list[str], data: memoryview | None = None) -> tuple[int, str]:
    """Runs a program with `data` as its input. Returns its exit status and what it wrote as errors."""
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    return done.returncode, done.stderr.decode(errors="replace").strip()
