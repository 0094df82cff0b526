"""Instruments for the lessons: they look at the work, they never do it for the reader.

    from helpers import clips, forecast, lesson, measure, models

    clip = clips.read("excavator")                  # or the path of your own clip
    clips.show(clip)                                # a strip of frames and a player
    forecast.forecasts("ltx_video", width=768, height=512, num_frames=121)
    repo = models.checkpoint("ltx_video").repo      # what `from_pretrained` takes

Each wing is a package whose `__init__` lists what it exports:

- `helpers.clips`: read, show, fit, join and write clips.
- `helpers.models`: the catalogue of the five models, their checkpoints, downloads, architectures, GGUF files, dummies.
- `helpers.measure`: the live memory meter, the comparison of offload modes, and the record of a run.
- `helpers.forecast`: VRAM, RAM and seconds before anything is downloaded; which mode to choose for a GPU.
- `helpers.lesson`: what surrounds a lesson's own calls, from its parameters to its results.
- `helpers.scoreboard`: recorded runs side by side.
- `helpers.run_lesson`: executes a lesson without a browser, and builds the site.
- `helpers.charts`, `files`, `units`, `faces`: the ground floor that all of them use.

Imports run one way: the ground floor, then clips, models, measure and run_lesson, then forecast and lesson, then
scoreboard. `tests/test_house.py` holds this rule.
"""
