"""Switch slices on and off."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from helpers.slices.held import Holding, holding, is_hooked
from helpers.slices.tokens import SliceError

PACE = "_hooks_that_keep_pace"


def slice_activations(model: object, slice_tokens: int | None) -> None:
    """Make a denoiser, or all denoisers of a pipeline, compute `slice_tokens` tokens at a time.

    The results are those of the plain model: each token's numbers are computed by the same operations, only fewer at
    once. Call it before an offload mode is switched on.

    Args:
        model: A Wan, LTX-Video or CogVideoX transformer, an SVD UNet, or a pipeline with one or two of them.
        slice_tokens: Tokens at a time. Fewer need less memory, but below some thousand a GPU cannot work at its full
            rate. If it is the whole sequence or more, nothing is gained. `None` makes the model what it was.

    Raises:
        SliceError: If `slice_tokens` is not a positive whole number, if the model is none of these, or if it has hooks
            or a cache that slices do not work with.
    """
    if slice_tokens is not None and (type(slice_tokens) is not int or slice_tokens < 1):
        raise SliceError(f"slice_tokens={slice_tokens!r}: give a number of tokens, 1 or more, or None for no slices.")
    for denoiser in _denoisers(model):
        if hasattr(denoiser, "when_loaded"):  # `helpers.models.InTurn`, in an expert's place
            denoiser.when_loaded(partial(slice_activations, slice_tokens=slice_tokens))
            continue
        _check(denoiser)
        for module, sliced in _counterparts(denoiser):
            if slice_tokens is None:
                module.__dict__.pop("slice_tokens", None)
            elif not issubclass(sliced, Holding):
                module.slice_tokens = slice_tokens
            plain = sliced.__bases__[-1]
            module.__class__ = plain if slice_tokens is None else sliced
        _keep_pace(denoiser, on=slice_tokens is not None)


def _denoisers(model: object) -> list[torch.nn.Module]:
    parts = [model] if isinstance(model, torch.nn.Module) else list(getattr(model, "components", {}).values())
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    found = [module for module in modules if hasattr(module, "when_loaded") or any(_counterparts(module))]
    if not found:
        raise SliceError(
            f"{type(model).__name__} has no denoiser to slice: give a Wan, LTX-Video or CogVideoX transformer, a "
            "Stable Video Diffusion UNet, or a pipeline with one."
        )
    return found


def _counterparts(denoiser: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, type]]:
    """Each module of the denoiser that has a sliced class, and that class: blocks, the model, and layers with weights.

    SVD's UNet is one forward for each slice, so its layers hold nothing.
    """
    from helpers.slices.cogvideox import SlicedCogVideoXBlock
    from helpers.slices.ltx import SlicedLTX, SlicedLTXBlock
    from helpers.slices.svd import SlicedSVD
    from helpers.slices.wan import SlicedWan, SlicedWanBlock

    classes = (SlicedWan, SlicedWanBlock, SlicedLTX, SlicedLTXBlock, SlicedCogVideoXBlock, SlicedSVD)
    found = False
    for module in denoiser.modules():
        for sliced in classes:
            if type(module) in (sliced, sliced.__bases__[-1]):
                found = found or sliced is not SlicedSVD
                yield module, sliced
    for module in denoiser.modules() if found else ():
        if not any(module.children()) and any(True for _ in module.parameters()):
            yield module, holding(type(module))


def _keep_pace(denoiser: torch.nn.Module, on: bool) -> None:
    """Let the CPU launch the work of at most one block ahead of the GPU.

    Streamed weights and activations of blocks that the CPU has already launched cannot share memory with those that the
    GPU is working on. Without a limit they fill the GPU, and then PyTorch stops everything to make room.
    """
    for hook in vars(denoiser).pop(PACE, ()):
        hook.remove()
    if not on:
        return
    begun: list[torch.cuda.Event] = []

    def wait(block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if any(isinstance(value, torch.Tensor) and value.is_cuda for value in (*args, *kwargs.values())):
            begun.append(torch.cuda.Event())
            begun[-1].record()
            if len(begun) > 1:
                begun.pop(0).synchronize()  # the GPU has begun the block before this one

    blocks = [block for child in denoiser.children() if isinstance(child, torch.nn.ModuleList) for block in child]
    setattr(denoiser, PACE, [block.register_forward_pre_hook(wait, with_kwargs=True) for block in blocks])


def _check(denoiser: torch.nn.Module) -> None:
    """Raise a SliceError for a model that slices do not work with."""
    name = type(denoiser).__name__
    if getattr(denoiser, "is_cache_enabled", False):
        raise SliceError(f"{name} has a cache, which compares whole sequences: call its disable_cache() first.")
    for module in denoiser.modules():
        if is_hooked(module):
            raise SliceError(f"{name} is offloaded already: slice a fresh one, then switch on the offload mode.")
        if getattr(module, "fused_projections", False):
            raise SliceError(f"{name} has fused projections: undo them first.")
        if getattr(module, "add_k_proj", None) is not None:
            raise SliceError(f"{name} attends to an image's tokens (Wan 2.1): its attention is not sliced here.")
