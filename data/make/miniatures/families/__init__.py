"""The model families: how each miniature is built, what its denoiser learns, and how its folder is assembled.

    family = family_of("ltx_video")
    family.size, family.frames  # (288, 160), 25

`protocol` says what a family must have; `base` has the defaults.
"""

import importlib

from .protocol import Family


def family_of(model: str) -> Family:
    """The family of a model. Its module, and with it diffusers, is imported only now.

    Raises:
        ValueError: If there is no such family.
    """
    try:
        module = importlib.import_module(f".{model}", __package__)
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.{model}":
            raise
        raise ValueError(f"{model!r} has no family module in data/make/miniatures/families") from None
    return module.FAMILY
