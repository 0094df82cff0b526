"""What the stages of each pipeline compute: the real forwards on meta tensors, one module per family.

    steps = stages(Architecture("ltx_video"), Request(768, 512, 121))
    with steps.prepared("denoise"), tape:
        steps.run("denoise")
"""

from __future__ import annotations

from helpers.forecast.pipelines.base import Request, Stages
from helpers.forecast.pipelines.cogvideox import CogVideoX
from helpers.forecast.pipelines.ltx import LTX
from helpers.forecast.pipelines.svd import StableVideoDiffusion
from helpers.forecast.pipelines.wan import Wan
from helpers.models.architecture import Architecture

FAMILIES = {one.__name__: one for one in (LTX, Wan, CogVideoX, StableVideoDiffusion)}


def stages(arch: Architecture, request: Request) -> Stages:
    """The stages of the architecture's family.

    Raises:
        RequestError: If the model cannot generate what is requested.
    """
    return FAMILIES[arch.family](arch, request)
