"""Measure a run: its memory while it runs, its offload modes side by side, and its record on disk.

    from helpers.measure import Comparison, ModeRun, VRAMMeter, record, save

    with VRAMMeter("model offload", budget_gb=12) as meter:  # draws itself below the cell while the block runs
        latents = pipe(..., output_type="latent").frames
    run = ModeRun.from_meter("model", meter, latents=latents, baseline=baseline_run.latents)
    Comparison([baseline_run, run], budget_gb=12)            # shows itself as a table
    save(record(settings, offload="model", chosen=run, ...), "outputs/ltx_video/run.json")

- The meter: `VRAMMeter`, its `Phase`s and `Sample`s; `ram` is what the process holds;
  `release` and `trim` free memory between two measurements.
- Steps: `StepTimer` times the denoising steps of a pipeline.
- Comparison: `ModeRun` is one offload mode, measured; `Comparison` shows several in a table and a chart.
- Records: `record`, `save`, `load`, `records_table`, `versions`.

Memory is in GiB (2**30 bytes), time in seconds. VRAM is `None` where there was no CUDA device to measure.
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "comparison": ("SAME_LATENTS", "Comparison", "ModeRun"),
    "memory": ("ram", "release", "trim"),
    "meter": ("VRAMMeter",),
    "readout": ("Phase", "Progress", "Sample"),
    "records": ("RECORD_KEYS", "load", "record", "records_table", "save", "versions"),
    "steps": ("StepTimer",),
})  # fmt: skip
