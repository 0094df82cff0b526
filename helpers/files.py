"""Write a file completely or not at all.

    with replacing("outputs/run.json") as temporary:
        temporary.write_text(content)

Any file you find under its final name is complete, even if the process was killed while writing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, and rename it to `path` when the block succeeds.

    The folder is created if it does not exist. If the block fails, the temporary file is removed and an existing
    file at `path` stays as it was. The temporary name keeps the suffix, because writers choose a format by it.

    Raises:
        OSError: If the folder cannot be created or the file cannot be renamed; errors of the block pass through.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
