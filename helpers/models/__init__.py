"""The five models: what they are, where their weights come from, and how large they are.

    from helpers.models import checkpoint, component_sizes, preview_download

    ltx = checkpoint("ltx_video", "miniature")  # ltx.repo and ltx.revision are what `from_pretrained` takes
    preview_download(ltx)                       # what loading it would download
    pipe = LTXImageToVideoPipeline.from_pretrained(ltx.repo, revision=ltx.revision)
    component_sizes(pipe.components)            # what it holds in memory

- The catalogue: `model`, `MODELS`, `Model`, `Defaults`, `OFFLOAD_MODES`, `MINIATURES`, `CONFIGS`.
- Checkpoints: `checkpoint`, `Checkpoint`; `preview_download` checks a download against disk and RAM before it starts.
- Without weights: `Architecture` builds a model's components on the meta device from their configs alone.
- With random weights: `dummy_folder` writes a full-size checkpoint to measure memory and time with.
- Layer by layer: `LazyWeights` reads a text encoder's tensors from disk while it runs.
- One expert at a time: `in_turn` loads each of two experts when its steps begin, and drops the other.
- To save time: `check_lora`, `check_cache`, `check_backend` and `check_fp8` say what cannot work before it is loaded.
- GGUF: `check_gguf` checks a file before it is loaded, `write_gguf` writes one.

Importing this package does not import torch; using a name that needs torch does.
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "catalogue": ("CONFIGS", "MINIATURES", "MODELS", "OFFLOAD_MODES", "Defaults", "Model", "model"),
    "checkpoints": ("Checkpoint", "CheckpointError", "checkpoint"),
    "components": ("ComponentSize", "ComponentSizes", "component_sizes", "published_sizes"),
    "downloads": ("ComponentDownload", "DownloadPreview", "preview_download"),
    "hub_errors": ("DownloadError",),
    "architecture": ("DENOISERS", "GGUF_LAYOUT", "Architecture", "ArchitectureError"),
    "dummies": ("CACHE", "DummyError", "dummy_folder", "gguf_path"),
    "gguf_files": (
        "GGUFError", "GGUFSummary", "TensorFile", "check_gguf", "original_name", "packed_nbytes", "quantized",
        "repeated", "write_gguf",
    ),
    "lazy_weights": ("LazyRows", "LazyWeights"),
    "experts": ("InTurn", "in_turn"),
    "levers": ("LeverError", "check_backend", "check_cache", "check_fp8", "check_lora", "usable_backends"),
})  # fmt: skip
