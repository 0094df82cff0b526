"""Record each stage of a pipeline once; every offload mode and every GPU uses the same recording."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from helpers.forecast.pipelines.base import Stages
from helpers.forecast.recording.allocators import module_bytes
from helpers.forecast.recording.replay import remembering
from helpers.forecast.recording.tape import Tape
from helpers.models.architecture import Architecture


@dataclass(frozen=True)
class Recording:
    """One stage's tape, and the bytes that casting a component for the stage adds to its weights."""

    tape: Tape
    upcast_bytes: int


@dataclass(frozen=True)
class _Job:
    """What a recording depends on; the stages themselves are not compared, so jobs that do the same are equal."""

    arch: Architecture
    stage: str
    size: tuple[int, int, int]
    options: tuple[object, ...]
    steps: Stages = field(compare=False, repr=False)


def architecture(
    checkpoint: str | Path, quantization: str | None = None, dtype: torch.dtype | None = None
) -> Architecture:
    """The checkpoint's `Architecture`; the last four are kept, because building 14 billion parameters takes a second.

    Raises:
        ArchitectureError: If there is no such checkpoint, or its family is not supported.
    """
    return _architecture(str(checkpoint), quantization, dtype)


def record(steps: Stages, stage: str) -> Recording:
    """Run one stage on a tape. The last 48 recordings are kept."""
    request = steps.request
    options = tuple(steps.option(name, stage) for name in steps.options[stage])
    return _record(_Job(steps.arch, stage, (request.width, request.height, request.num_frames), options, steps))


_architecture = lru_cache(maxsize=4)(Architecture)


@lru_cache(maxsize=48)
def _record(job: _Job) -> Recording:
    components = [job.arch.component(name) for name in job.arch.on_gpu]
    tape, usual = Tape(), sum(map(module_bytes, components))
    with job.steps.prepared(job.stage), job.steps.sliced(job.stage):
        for component in components:
            tape.exclude(component)
        with tape, remembering(tape, *job.steps.alike()):
            job.steps.run(job.stage)
        return Recording(tape, sum(map(module_bytes, components)) - usual)
