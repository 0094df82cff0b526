"""Instruments for the lessons: they look at the work, they never do it for the reader.

Quick start, from the project's root:

    from helpers.checkpoints import checkpoint
    from helpers.clips import read
    from helpers.pictures import show

    clip = read("excavator")                    # or the path of your own clip
    show(clip)                                  # a strip of frames and a player
    repo = checkpoint("ltx_video", "miniature")  # what `from_pretrained` takes

Modules:

- `helpers.models`: the catalogue of the five models: Hub ids, size and frame rules, defaults, licences.
- `helpers.checkpoints`: turns a model and a kind of weights into what `from_pretrained` takes.
- `helpers.downloads`: what a download will take, before it; `helpers.hub_errors` says what to do where the Hub refuses.
- `helpers.clips`: fits, stitches and writes video clips; `helpers.reading` reads them, `helpers.seams` judges a join.
- `helpers.pictures`: shows clips: strips of frames, the player, pictures on disk.
- `helpers.checks`: checks a lesson's parameters, and `helpers.machine` the machine, with errors that say what to do.
- `helpers.meter`: `VRAMMeter`, the live readout of VRAM and RAM.
- `helpers.forecast`: VRAM, RAM and seconds before anything is downloaded: `python -m helpers.forecast ltx_video`. It
  builds the model from its configs (`helpers.architecture`), runs its stages (`helpers.stages`) on a tape
  (`helpers.tape`, `helpers.replay`), adds the weights of each mode (`helpers.placement`) and a card's rates
  (`helpers.cards`), and shows the result (`helpers.forecast_result`).
- `helpers.planner`: the mode to take for a card, and the pickers of `00_start_here`.
- `helpers.dummies`: full-size checkpoints of random weights, to measure with; `helpers.gguf_files` writes GGUF files.
- `helpers.runs`: the record of a run: time it, compare modes, save, load and tabulate.
- `helpers.charts`: charts and tables that show themselves in a notebook, drawn with `helpers.svg`.
- `helpers.run_lesson`: executes a lesson without a browser: `python -m helpers.run_lesson 01_ltx_video`.
"""
