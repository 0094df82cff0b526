"""What surrounds a lesson's own calls: parameters, the machine, measured modes, results, and files to resume from.

    from helpers import lesson

    settings = lesson.resolve("ltx_video", globals())  # every parameter of the lesson, checked
    lesson.environment(settings)                       # the machine, compared with the budgets

Lesson 01 writes out and explains `encoder_from_files`, `encode_prompts`, `offload_sequentially`, `offload_in_groups`,
`cap_vram`, `measure_mode` and `generate`, and lesson 02 `encode_wan`, `load_wan_vae`, `pad_embeddings`
and `decode_wan`; the later lessons import them from here. Tests compare the sources.
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "values": ("ParameterError", "inside", "one_of", "whole"),
    "parameters": ("ENCODE_WAYS", "Settings", "resolve"),
    "folders": ("fingerprint",),
    "machine": ("Environment", "EnvironmentProblem", "environment", "preview_download", "quiet_libraries"),
    "kernels": ("use_onednn",),
    "cache": ("CachedEmbeddings", "SavedLatents"),
    "prompts": ("encode_prompts", "encoder_for", "encoder_from_files", "prompt_cut"),
    "offloading": ("offload_in_groups", "offload_sequentially"),
    "decoding": ("decode_saved", "to_frames"),
    "running": ("cap_vram", "generate", "measure_mode", "preparing", "start_device"),
    "results": (
        "against_truth", "answered", "carry_over", "extend_clip", "extend_clip_by", "new_rate", "record_run",
        "true_frames",
    ),
    "wan": ("decode_wan", "encode_wan", "load_wan_vae", "pad_embeddings"),
})  # fmt: skip
