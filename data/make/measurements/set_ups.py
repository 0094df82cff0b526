"""The six set-ups: a model at full size, as the README's table and the forecasts show it."""

from dataclasses import dataclass

BUDGET_GIB = 12.0  # the VRAM of the GPU that the set-ups are meant for


@dataclass(frozen=True)
class SetUp:
    """A model at a size.

    Attributes:
        model: Its name.
        size: Width, height in pixels, and number of frames.
        lesson: The notebook that runs it.
        offload: The mode with which the lesson makes the clip within the budget.
    """

    model: str
    size: tuple[int, int, int]
    lesson: str
    offload: str


SET_UPS = {
    "ltx_video": SetUp("ltx_video", (768, 512, 121), "01_ltx_video", "sequential"),
    "wan22_i2v_a14b_720p": SetUp("wan22_i2v_a14b", (1280, 720, 81), "03_wan22_i2v_a14b_gguf", "group_leaf"),
    "wan22_i2v_a14b": SetUp("wan22_i2v_a14b", (640, 384, 81), "03_wan22_i2v_a14b_gguf", "model"),
    "cogvideox_5b_i2v": SetUp("cogvideox_5b_i2v", (720, 480, 49), "05_cogvideox_5b_i2v", "sequential"),
    "svd_xt": SetUp("svd_xt", (1024, 576, 25), "04_stable_video_diffusion", "model"),
    "wan22_ti2v_5b": SetUp("wan22_ti2v_5b", (640, 384, 121), "02_wan22_ti2v_5b", "model"),
}
