"""The ffmpeg program, which decodes and encodes every clip; the package imageio-ffmpeg brings one."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.clips.clip import ClipError


def ffmpeg_path() -> str:
    """Returns the path of the ffmpeg program: `IMAGEIO_FFMPEG_EXE`, the one of imageio-ffmpeg, or else the system's.

    Raises:
        ClipError: If there is none that is new enough; the message names the ones that were tried.
    """
    wished, tried = os.environ.get("IMAGEIO_FFMPEG_EXE"), []
    for program in (wished, *_packaged(), "ffmpeg"):
        if program and (found := shutil.which(program)):
            if not _is_too_old(found):
                return found
            tried.append(f"the program {found} is too old")
        elif program and program == wished:
            tried.append(f"IMAGEIO_FFMPEG_EXE names {wished}, which is no program")
    reasons = "; ".join(tried) or "no ffmpeg program was found"
    raise ClipError(f"{reasons}: run `pip install --upgrade imageio-ffmpeg`, which brings one.")


def _packaged() -> list[str]:
    """The program that the package imageio-ffmpeg brings, or that conda does."""
    try:
        from imageio_ffmpeg import binaries
    except ImportError:
        return []
    folders = [Path(folder) for folder in binaries.__path__]
    return [str(path) for folder in folders for path in sorted(folder.glob("ffmpeg*"))] + [f"{sys.prefix}/bin/ffmpeg"]


@functools.cache
def _is_too_old(ffmpeg: str) -> bool:
    """Whether an ffmpeg program lacks an option that `_decode` gives it: it would take every clip for damaged."""
    return "Unrecognized option" in run([ffmpeg, "-hide_banner", "-nostdin", "-fps_mode", "passthrough"])[1]


def run(command: list[str], data: memoryview | None = None) -> tuple[int, str]:
    """Runs a program with `data` as its input. Returns its exit status and what it wrote as errors."""
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    return done.returncode, done.stderr.decode(errors="replace").strip()
