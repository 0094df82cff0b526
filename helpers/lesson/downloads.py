"""Preview what a lesson downloads, compared with the disk and the RAM. Lesson 01 writes this out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from helpers.lesson.parameters import Settings
from helpers.models import downloads


def preview_download(settings: Settings, video_half: Mapping[str, Any], **options: Any) -> downloads.DownloadPreview:
    """Preview the download of a lesson's checkpoint: its text half and its video half are never in RAM together.

    Args:
        video_half: The data types of the components that are loaded together to make the video, by name.
        options: `without` and `variant` of `helpers.models.preview_download`.

    Raises:
        DownloadError: As `helpers.models.preview_download` does.
    """
    in_ram = "text_encoder" in settings.model.parameters and settings.encode == "fp32"
    text_half = {"text_encoder": torch.float32} if in_ram else {}
    return downloads.preview_download(
        settings.checkpoint, in_memory=[text_half, video_half], ram_budget_gb=settings.ram_budget_gb, **options
    )
