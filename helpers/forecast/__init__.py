"""Forecasts of VRAM, RAM and step time for each offload mode, made from a model's config files alone.

    from helpers.forecast import forecasts, plan

    forecasts("ltx_video", width=768, height=512, num_frames=121)           # all five modes, as a table
    plan("wan22_i2v_a14b", width=1280, height=720, num_frames=81)           # the mode to use with 12 GiB
    python -m helpers.forecast ltx_video --offload group_leaf               # the same in a terminal

- Forecasts: `forecast`, `forecasts`, and their results `Forecast`, `Forecasts`; `CONTEXT_GIB`, `STAGES`.
- Planning: `plan`, `Plan`, `Verdict`, `find_way` and its `Way` for small cards, and `Controls`, pickers for a notebook.
- GPUs: `gpu(name)` and `GPUS` with their `Rates`, `DEFAULT_GPU`; `here()` for this machine's, `find_gpu` for a device
  name, `measure_gpu` for a GPU that is not in the table.
- How it works: `stages` runs a `Request` on a `Tape`, and `Placement` adds each mode's weights. `RequestError` says
  what a model cannot generate.
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "forecasting": ("forecast", "forecasts"),
    "result": ("CONTEXT_GIB", "Forecast", "Forecasts"),
    "stage": ("STAGES",),
    "planning.planner": ("Plan", "Way", "find_way", "plan"),
    "planning.verdict": ("Verdict",),
    "planning.controls": ("Controls",),
    "gpus": ("DEFAULT_GPU", "GPU", "GPUS", "find_gpu", "gpu", "here"),
    "rates": ("Rates",),
    "gpu_benchmark": ("measure_gpu",),
    "pipelines": ("stages",),
    "pipelines.base": ("Request", "RequestError"),
    "placement": ("Placement",),
    "recording.tape": ("Tape",),
})  # fmt: skip
